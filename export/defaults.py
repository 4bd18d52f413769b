"""What the bundle says about the checkpoint as a whole: family, latents, scheduler, defaults."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from engine.bundle import Defaults
from engine.errors import EngineError
from engine.schedulers import DIFFUSERS_CLASSES, SCHEDULERS, make_schedule
from export.checkpoint import Checkpoint
from export.errors import ExportError

logger = logging.getLogger(__name__)

CONTEXT: Final = 0.5
"""What a region shows round the hole: as much again, half of it on each side."""

_DPM_SOLVERS: Final = {
    ("dpmsolver++", 2): "dpmpp_2m",
    ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
}
_BY_CLASS: Final = {kind: name for name, kind in reversed(DIFFUSERS_CLASSES.items())}
_STEPS_AND_GUIDANCE: Final = {"lcm": (4, 1.0)}
_PREDICTION_TYPES: Final = ("epsilon", "v_prediction", "sample")
_SMALLEST_SIZE: Final = 64


def family(checkpoint: Checkpoint) -> str:
    """``"sdxl"`` for two text encoders, ``"sd2"`` for the wide one of Stable Diffusion 2, else
    ``"sd1"``."""
    if len(checkpoint.text_encoders) > 1:
        return "sdxl"
    return "sd2" if checkpoint.unet.get("cross_attention_dim") == 1024 else "sd1"


def scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's scheduler configuration, as diffusers' pipelines correct it on loading.

    Those of one text encoder set ``steps_offset`` to 1 and skip PNDM's Runge-Kutta steps, whatever
    the file says; those of SDXL take it as it is.
    """
    config = {
        key: value
        for key, value in checkpoint.scheduler.items()
        if key == "_class_name" or not key.startswith("_")
    }
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTION_TYPES:
        raise ExportError(
            f"scheduler_config.json: prediction_type is {prediction!r}; "
            f"supported: {', '.join(_PREDICTION_TYPES)}"
        )
    if len(checkpoint.text_encoders) > 1:
        return config
    config["steps_offset"] = 1
    if config["_class_name"] == "PNDMScheduler":
        config["skip_prk_steps"] = True
    return config


def scheduler_name(config: Mapping[str, Any]) -> str:
    """The scheduler that a configuration is for; ``ddim``, and said so, where none fits."""
    found = str(config.get("_class_name"))
    name = _BY_CLASS.get(found)
    if name == "dpmpp_2m":
        kind = config.get("algorithm_type", "dpmsolver++"), config.get("solver_order", 2)
        name = _DPM_SOLVERS.get(kind)
        if name is None:
            found = f"{found} ({kind[0]}, order {kind[1]})"
        elif config.get("use_karras_sigmas"):
            name += "_karras"
    if name is None:
        logger.warning("The checkpoint's scheduler is not among ours, ddim is taken: %s", found)
        return "ddim"
    return name


def defaults(
    config: Mapping[str, Any],
    native: int,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    size: int | None = None,
    max_size: int | None = None,
    context: float | None = None,
    scheduler: str | None = None,
) -> Defaults:
    """What a request gets when it does not say; every value given overrides the usual one.

    Args:
        config: The scheduler configuration.
        native: Side in pixels at which the UNet was trained.
        num_inference_steps: 25, or 4 for LCM, where None.
        guidance_scale: 7.5, or 1 for LCM, where None.
        size: ``native`` where None.
        max_size: One and a half times ``size``, down to a multiple of 64, where None.
        context: ``CONTEXT`` where None.
        scheduler: The one that ``config`` is for where None.

    Raises:
        ExportError: When a value is not allowed, or the scheduler cannot run this configuration.
    """
    name = scheduler_name(config) if scheduler is None else scheduler
    if name not in SCHEDULERS:
        raise ExportError(f"scheduler is {name!r}; allowed: {', '.join(SCHEDULERS)}")
    steps, guidance = _STEPS_AND_GUIDANCE.get(name, (25, 7.5))
    size = max(native, _SMALLEST_SIZE) if size is None else size
    max_size = max(size, size * 3 // 2 // 64 * 64) if max_size is None else max_size
    for field, side in (("size", size), ("max_size", max_size)):
        if side % 8 or not _SMALLEST_SIZE <= side <= 4096:
            raise ExportError(f"{field} is {side}; a multiple of 8 from 64 to 4096 is allowed")
    if max_size < size:
        raise ExportError(f"max_size is {max_size}, below size {size}; it must not be smaller")
    context = CONTEXT if context is None else context
    if not 0 <= context <= 8:
        raise ExportError(f"context is {context}; 0 to 8 is allowed")
    steps = steps if num_inference_steps is None else num_inference_steps
    try:
        make_schedule(name, config, num_inference_steps=steps)
    except EngineError as exc:
        raise ExportError(f"scheduler_config.json: {exc}") from exc
    return Defaults(
        num_inference_steps=steps,
        guidance_scale=float(guidance if guidance_scale is None else guidance_scale),
        size=size,
        max_size=max_size,
        context=float(context),
        scheduler=name,
    )
