"""Requests, results and errors as plain values and arrays, and back."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Final

import numpy as np

from engine import (
    BundleError,
    DeadlineMissed,
    DeviceLost,
    EngineError,
    InpaintRequest,
    InpaintResult,
    InputError,
    Plan,
    RequestCancelled,
    RuntimeUnavailable,
    SessionError,
    TensorMismatch,
    Timings,
)
from engine.cache import CacheStatistics
from engine.job import Draft
from engine.request import Region
from service.engine_process.wire import MAX_TEXT, Message, unwrap, wrap

_ERRORS: Final[dict[str, type[EngineError]]] = {
    kind.__name__: kind
    for kind in (
        EngineError,
        BundleError,
        DeadlineMissed,
        RequestCancelled,
        SessionError,
        RuntimeUnavailable,
        TensorMismatch,
        DeviceLost,
    )
}


def wrap_request(draft: Draft, region: Region, *, left: float | None = None) -> int:
    """A checked request as a parcel, every choice made.

    A deadline crosses as the seconds that are ``left`` of it: the processes share no clock.

    The draft's own arrays cross: they have the size of the result, which is often less than what
    was handed in, and nobody else can change them before a second attempt. The seed is the draft's,
    so that a second attempt gives the same picture.
    """
    values = {
        "prompt": draft.prompt,
        "negative_prompt": draft.negative_prompt,
        "samples": draft.samples,
        "seed": draft.seed,
        "strength": draft.strength,
        "num_inference_steps": draft.num_inference_steps,
        "guidance_scale": draft.guidance_scale,
        "scheduler": draft.scheduler,
        "region": region,
        "reference": draft.reference,
        "safety_checker": draft.safety_checker,
        "deadline": left,
        **dataclasses.asdict(draft.savings),
        **dataclasses.asdict(draft.wording),
    }
    return wrap(values, {"image": draft.image, "mask": draft.mask * np.uint8(255)})


def unwrap_request(fd: int) -> InpaintRequest:
    """The request in a parcel."""
    values, arrays = unwrap(fd)
    return InpaintRequest(image=arrays["image"], mask=arrays["mask"], **values)


def wrap_statistics(statistics: dict[str, CacheStatistics]) -> dict[str, dict[str, int]]:
    """How the caches fare, as part of a message."""
    return {kind: dataclasses.asdict(figures) for kind, figures in statistics.items()}


def unwrap_statistics(told: dict[str, dict[str, int]]) -> dict[str, CacheStatistics]:
    """The same back."""
    return {kind: CacheStatistics(**figures) for kind, figures in told.items()}


def wrap_result(result: InpaintResult) -> int:
    """A result as a parcel."""
    values = {
        "seed": result.seed,
        "num_inference_steps": result.num_inference_steps,
        "steps_run": result.steps_run,
        "guidance_scale": result.guidance_scale,
        "scheduler": result.scheduler,
        "region": result.region,
        "working_size": result.working_size,
        "timings": dataclasses.asdict(result.timings),
        "nsfw": result.nsfw,
        "plan": None if result.plan is None else dataclasses.asdict(result.plan),
    }
    return wrap(values, {"images": result.images, "latents": result.latents})


def unwrap_result(fd: int, *, submitted: float, prepared: float) -> InpaintResult:
    """The result in a parcel, its timings as they are seen from here.

    Args:
        fd: The parcel.
        submitted: ``time.perf_counter()`` when the request was handed in.
        prepared: Seconds that were spent on checking it here.
    """
    values, arrays = unwrap(fd)
    inside = Timings(**values.pop("timings"))
    total = time.perf_counter() - submitted
    timings = dataclasses.replace(
        inside,
        total=total,
        prepare=inside.prepare + prepared,
        queue=inside.queue + max(0.0, total - inside.total - prepared),
    )
    region, working_size = values.pop("region"), values.pop("working_size")
    nsfw, plan = values.pop("nsfw"), values.pop("plan")
    if plan is not None:
        plan = Plan(**plan | {"working_size": tuple(plan["working_size"])})
    return InpaintResult(
        images=arrays["images"],
        latents=arrays.get("latents"),
        region=tuple(region),
        working_size=tuple(working_size),
        timings=timings,
        nsfw=None if nsfw is None else tuple(nsfw),
        plan=plan,
        **values,
    )


def describe_error(error: BaseException) -> Message:
    """An error as plain values; one that is none of ours becomes a SessionError."""
    if isinstance(error, InputError):
        return {"type": "InputError", "field": error.field, "message": error.message[:MAX_TEXT]}
    for kind in type(error).__mro__:
        if _ERRORS.get(kind.__name__) is kind:
            return {"type": kind.__name__, "message": str(error)[:MAX_TEXT]}
    text = f"the engine failed on this request: {error!r}"
    return {"type": "SessionError", "message": text[:MAX_TEXT]}


def restore_error(described: dict[str, Any]) -> EngineError:
    """The error again, of its own type."""
    if described["type"] == "InputError":
        return InputError(described["field"], described["message"])
    return _ERRORS[described["type"]](described["message"])
