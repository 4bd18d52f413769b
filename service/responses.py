"""The answers of the contract: one success shape and one error shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from starlette.responses import JSONResponse

from engine import InpaintResult, Plan
from engine.manifest import Defaults
from service.choices import choices_told
from service.errors import ApiError
from service.inputs import summary
from service.schema import Body

TIP: Final = "Your image is processing in background, you can get this image using fetch API"
ALLOW_EVERY_ORIGIN: Final = {"Access-Control-Allow-Origin": "*"}


def error_response(error: ApiError) -> JSONResponse:
    """``{"status": "error", "message": ...}`` with the error's status and headers."""
    return JSONResponse(
        {"status": "error", "message": error.message, **error.extra},
        status_code=error.status,
        headers={**ALLOW_EVERY_ORIGIN, **error.headers},
    )


def success(
    body: Body,
    result: InpaintResult,
    *,
    identity: int,
    prefix: str,
    output: Sequence[str],
) -> dict[str, Any]:
    """The body of the answer to a request whose pictures are made.

    Args:
        body: What was asked.
        result: What the engine made of it.
        identity: The id of the request.
        prefix: The part of the pictures' names that cannot be guessed.
        output: A link, or base64 text, per picture.
    """
    timings = result.timings
    return {
        "status": "success",
        "generationTime": round(timings.total - timings.queue, 3),
        "id": identity,
        "output": list(output),
        "proxy_links": list(output),
        "nsfw_content_detected": any(result.nsfw or ()),
        "meta": meta(body, prefix=prefix) | _how(result),
    }


def processing(
    body: Body,
    defaults: Defaults,
    *,
    identity: int,
    prefix: str,
    eta: float,
    fetch_result: str,
    links: Sequence[str],
) -> dict[str, Any]:
    """The body of the answer to a request whose pictures are not made yet.

    Args:
        body: What was asked.
        defaults: What the engine takes for what was not.
        identity: The id of the job.
        prefix: The part of the pictures' names that cannot be guessed.
        eta: Seconds until it will be done.
        fetch_result: Where to ask again.
        links: Where the pictures will be.
    """
    return {
        "status": "processing",
        "tip": TIP,
        "eta": eta,
        "message": "Try to fetch request after seconds estimated",
        "fetch_result": fetch_result,
        "id": identity,
        "output": [],
        "meta": meta(body, prefix=prefix) | _chosen(body, defaults),
        "future_links": list(links),
    }


def meta(body: Body, *, prefix: str) -> dict[str, Any]:
    """What was asked, as the hosted API writes it: booleans as "yes" and "no", never the key."""
    return {
        "base64": _yes_no(body.base64),
        "deadline_ms": body.deadline_ms,
        "enhance_prompt": "no",
        "file_prefix": prefix,
        "guidance_scale": body.guidance_scale,
        "height": body.height,
        "instant_response": _yes_no(body.instant_response),
        "n_samples": body.samples,
        "negative_prompt": body.negative_prompt,
        "outdir": "out",
        "output_format": body.output_format,
        "prompt": body.prompt,
        "region": body.where,
        "safety_checker": _yes_no(body.safety_checker),
        "safety_checker_type": "black",
        "scheduler": body.scheduler,
        "seed": body.seed,
        "steps": body.num_inference_steps,
        "strength": body.how_strong,
        "temp": "no",
        "track_id": body.track_id,
        "webhook": body.webhook,
        "width": body.width,
        **choices_told(body),
    } | {field: summary(value) for field, value in body.pictures.items()}


def _chosen(body: Body, defaults: Defaults) -> dict[str, Any]:
    """What the engine will do, asked for or not: strict clients take no null for a number."""
    guidance = body.guidance_scale
    return {
        "guidance_scale": defaults.guidance_scale if guidance is None else guidance,
        "scheduler": body.scheduler or defaults.scheduler,
        "steps": body.num_inference_steps or defaults.num_inference_steps,
    }


def _how(result: InpaintResult) -> dict[str, Any]:
    """What was left to the engine, and how long its stages took."""
    stages = dataclasses.asdict(result.timings)
    return {
        "guidance_scale": result.guidance_scale,
        "scheduler": result.scheduler,
        "seed": result.seed,
        "steps": result.num_inference_steps,
        "timings": {name: round(seconds, 4) for name, seconds in stages.items()},
    } | ({} if result.plan is None else {"plan": _planned(result.plan)})


def _planned(plan: Plan) -> dict[str, Any]:
    """What was chosen so that the pictures are made by their deadline."""
    estimated = plan.estimated
    return {
        "steps": plan.num_inference_steps,
        "working_size": list(plan.working_size),
        "vae": plan.vae,
        "estimated_ms": None if estimated is None else round(estimated * 1000),
        "reduced": plan.reduced,
    }


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
