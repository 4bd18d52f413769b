"""The gate: a converted network goes into a bundle only when it computes what the original does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.bundle import Parity
from export.errors import ParityError, in_a_line
from export.networks import Network

MAX_ABS_ERROR: Final = 1e-3
"""fp32 against fp32: sums in another order, up to some 1e-5 per unit in a network of 860 M."""

LARGE: Final = 100.0
"""Where the largest value is above that, the limit grows with it: between two layers of a text
encoder, which is what SDXL reads, stand values of some hundreds."""

MIN_PSNR_DB: Final = 60.0
"""A thousandth of the largest value; good conversions stand above 100 dB."""

MIN_PSNR_DB_OF: Final = {"fp16": 50.0, "int8": 30.0}
"""Where weights were rounded. fp16 keeps 11 bits of each, int8 some 7; how far the largest
difference goes is then the network's doing, and recorded only."""

_PSNR_OF_EQUALS: Final = 200.0


def compare(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> Parity:
    """The figures of one output: 20 log10(max|reference| / rmse), and the largest difference."""
    difference = found.astype(np.float64) - reference.astype(np.float64)
    rmse = float(np.sqrt(np.mean(difference**2)))
    peak = float(np.abs(reference).max())
    if rmse == 0.0:
        psnr = _PSNR_OF_EQUALS
    elif peak == 0.0:
        psnr = -_PSNR_OF_EQUALS
    else:
        psnr = min(float(20 * np.log10(peak / rmse)), _PSNR_OF_EQUALS)
    return Parity(psnr_db=psnr, max_abs_error=float(np.abs(difference).max()))


def check(network: Network, model: Path, *, stored: str = "exact") -> Parity:
    """Compare a model file in ONNX Runtime with the network it was made from.

    Args:
        network: The network.
        model: The file.
        stored: How its weights are stored; see ``export.initializers``.

    Returns:
        The worst figures of all cases.

    Raises:
        ParityError: Where they are beyond the limits, or not numbers.
    """
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    figures, peak = [], LARGE
    for inputs in network.cases:
        with torch.no_grad():
            tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
            said = network.reference(**tensors)
        references = said if isinstance(said, tuple) else (said,)
        try:
            answers = session.run(None, inputs)
        except Exception as exc:  # the runtime's errors have no other common base
            shapes = {name: values.shape for name, values in inputs.items()}
            raise ParityError(
                f"{network.name}: does not run with {shapes}: {in_a_line(exc)}"
            ) from exc
        for reference, found in zip(references, answers, strict=True):
            if found.shape != tuple(reference.shape):
                shape = tuple(reference.shape)
                raise ParityError(
                    f"{network.name}: gives shape {found.shape}; the original gives {shape}"
                )
            figures.append(compare(reference.numpy(), found))
            peak = max(peak, float(reference.abs().max()))
    return require(network.name, figures, stored=stored, peak=peak)


def require(
    name: str, figures: Sequence[Parity], *, stored: str = "exact", peak: float = LARGE
) -> Parity:
    """The worst of the figures, which must be within the limits for values up to ``peak``."""
    # min and max pass over a nan, the comparison below must not.
    psnr = float(np.min([parity.psnr_db for parity in figures]))
    error = float(np.max([parity.max_abs_error for parity in figures]))
    least = MIN_PSNR_DB_OF.get(stored, MIN_PSNR_DB)
    most = np.inf if stored in MIN_PSNR_DB_OF else MAX_ABS_ERROR * peak / LARGE
    if not (psnr >= least and error <= most):
        limit = "" if stored in MIN_PSNR_DB_OF else f" (limit {most:g})"
        raise ParityError(
            f"{name}: differs from the checkpoint by up to {error:.2g}{limit}, "
            f"PSNR {psnr:.1f} dB (limit {least:g} dB); nothing was written"
        )
    return Parity(psnr_db=round(psnr, 2), max_abs_error=error)
