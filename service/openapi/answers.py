"""The schemas of answers: one success shape, one for what is not done yet, one error shape."""

from __future__ import annotations

from typing import Any, Final

from service.openapi.words import ANSWERS

SUCCESS: Final = "RealtimeImageGenerationSuccessResponse"
PROCESSING: Final = "RealtimeImageGenerationProcessingResponse"
ERROR: Final = "RealtimeImageGenerationErrorResponse"
STANDARD_ERROR: Final = "StandardErrorResponse"

Schema = dict[str, Any]

_ID: Final = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_LINKS: Final = {"type": "array", "items": {"type": "string", "format": "uri"}}
_YES_NO: Final = {"type": "string", "enum": ["yes", "no"]}
_NUMBER: Final = {"type": "number"}
_INTEGER: Final = {"type": "integer"}
_META: Final[dict[str, Schema]] = {
    "base64": _YES_NO,
    "deadline_ms": {"type": ["integer", "null"]},
    "enhance_prompt": _YES_NO,
    "file_prefix": _TEXT,
    "guidance_scale": _NUMBER,
    "height": _INTEGER,
    "instant_response": _YES_NO,
    "n_samples": _INTEGER,
    "negative_prompt": _TEXT,
    "outdir": _TEXT,
    "output_format": _TEXT,
    "prompt": _TEXT,
    "region": _TEXT,
    "safety_checker": _YES_NO,
    "safety_checker_type": _TEXT,
    "scheduler": _TEXT,
    "seed": _INTEGER,
    "steps": _INTEGER,
    "strength": _NUMBER,
    "temp": _YES_NO,
    "track_id": {"type": ["string", "integer", "null"]},
    "webhook": {"type": ["string", "null"]},
    "width": _INTEGER,
}
"""What meta always holds; init_image, mask_image, timings and plan come on top where there are
any, decoder, guidance_share, deep_cache_interval, working_size, prompt_syntax and
text_layers_skipped where they are not as usual."""

_PLAN: Final = {
    "type": "object",
    "required": ["steps", "working_size", "vae", "estimated_ms", "reduced"],
    "properties": {
        "steps": _INTEGER,
        "working_size": {"type": "array", "items": _INTEGER, "minItems": 2, "maxItems": 2},
        "vae": {"type": "string", "enum": ["full", "fast"]},
        "estimated_ms": {"type": ["integer", "null"]},
        "reduced": {"type": "boolean"},
    },
}


def answer_schemas() -> dict[str, Schema]:
    """The schemas of all JSON answers, by their names."""
    meta = {"$ref": "#/components/schemas/Meta"}
    return {
        SUCCESS: _object(
            "success",
            generationTime=_described(_NUMBER, "generationTime"),
            id=_described(_ID, "id"),
            output=_described(_TEXTS, "output"),
            proxy_links=_described(_TEXTS, "proxy_links"),
            meta=meta,
            nsfw_content_detected=_described({"type": "boolean"}, "nsfw_content_detected"),
        ),
        PROCESSING: _object(
            "processing",
            tip=_described(_TEXT, "tip"),
            eta=_described(_NUMBER, "eta"),
            message=_described(_TEXT, "processing_message"),
            fetch_result=_described({"type": "string", "format": "uri"}, "fetch_result"),
            id=_described(_ID, "id"),
            output=_described({**_TEXTS, "maxItems": 0}, "no_output"),
            meta=meta,
            future_links=_described(_LINKS, "future_links"),
        ),
        ERROR: {
            "type": "object",
            "required": ["status", "message"],
            "properties": {
                "status": {"type": "string", "enum": ["error"]},
                "message": _described(_TEXT, "message"),
                "id": _described(_ID, "error_id"),
                "retry_after": _described(_INTEGER, "retry_after"),
            },
        },
        "Meta": {
            "type": "object",
            "description": ANSWERS["meta"],
            "required": list(_META),
            "properties": {
                **_META,
                "init_image": _TEXT,
                "mask_image": _TEXT,
                "timings": {"type": "object", "additionalProperties": _NUMBER},
                "plan": _described(_PLAN, "plan"),
                "decoder": _TEXT,
                "guidance_share": _NUMBER,
                "deep_cache_interval": _INTEGER,
                "working_size": _INTEGER,
                "prompt_syntax": _TEXT,
                "text_layers_skipped": _INTEGER,
            },
            "additionalProperties": True,
        },
        "Base64ToUrlResponse": _object("success", output={**_LINKS, "minItems": 1, "maxItems": 1}),
        "HealthResponse": _object("ok"),
    }


def standard_error(description: str, *, retry: bool = False) -> Schema:
    """A response that holds the one error shape.

    Args:
        description: When it comes.
        retry: Whether it says when to try again.
    """
    response: Schema = {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ERROR}"}}},
    }
    if retry:
        response["headers"] = {
            "Retry-After": {
                "description": ANSWERS["retry_after"],
                "required": True,
                "schema": {"type": "integer", "minimum": 1},
            }
        }
    return response


def _object(status: str, **properties: Schema) -> Schema:
    """An object of which every property is there; ``status`` has one value."""
    named = {"status": {"type": "string", "enum": [status]}, **properties}
    return {"type": "object", "required": list(named), "properties": named}


def _described(schema: Schema, name: str) -> Schema:
    return {**schema, "description": ANSWERS[name]}
