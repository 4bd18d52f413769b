"""How far pictures are apart: PSNR, the largest difference, and SSIM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.image import Grey, Rgb

_WINDOW: Final = (11, 11)
_SIGMA: Final = 1.5
_C1: Final = (0.01 * 255) ** 2
_C2: Final = (0.03 * 255) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two pictures apart, in levels of 0 to 255.

    Attributes:
        squares: Sum of the squared differences where the mask is white, and ``values``, how many
            there are.
        largest: Largest difference anywhere in the picture.
        ssim: Mean of the structural similarity where the mask is white.
    """

    squares: float
    values: int
    largest: int
    ssim: float


def difference(one: Rgb, other: Rgb, mask: Grey) -> Difference:
    """Compare two pictures (H, W, 3); the mask is (H, W), 128 and above is white, and some is."""
    hole = mask >= 128
    apart = one.astype(np.int32) - other
    return Difference(
        squares=float(np.square(apart[hole]).sum()),
        values=int(hole.sum()) * one.shape[2],
        largest=int(np.abs(apart).max()),
        ssim=float(_ssim(_luminance(one), _luminance(other))[hole].mean()),
    )


def summary(differences: Sequence[Difference]) -> dict[str, Any]:
    """Of several pictures: PSNR of them all, null where all are equal; largest difference; mean
    and smallest SSIM."""
    error = sum(d.squares for d in differences) / sum(d.values for d in differences)
    return {
        "psnr_db": round(10 * math.log10(255**2 / error), 2) if error else None,
        "max_abs": max(d.largest for d in differences),
        "ssim": round(sum(d.ssim for d in differences) / len(differences), 4),
        "ssim_lowest": round(min(d.ssim for d in differences), 4),
        "pictures": len(differences),
        "equal": sum(d.largest == 0 for d in differences),
    }


def _luminance(picture: Rgb) -> npt.NDArray[np.float64]:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float64)


def _ssim(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The map of Wang et al., Image Quality Assessment: From Error Visibility to Structural
    Similarity (2004), with its window and constants."""

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(values, _WINDOW, _SIGMA), np.float64)

    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2
    cov = mean(x * y) - mu_x * mu_y
    return np.asarray(
        (2 * mu_x * mu_y + _C1)
        * (2 * cov + _C2)
        / ((mu_x**2 + mu_y**2 + _C1) * (var_x + var_y + _C2))
    )
