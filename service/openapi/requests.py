"""The schemas of requests, read off the models that check them.

Clients send numbers as text, "yes" for true and null for what they leave out. A field's schema
says all of that in one flat object, since JSON Schema's bounds speak of numbers alone and its
patterns of text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from engine.request import MAX_PROMPT_CHARACTERS
from engine.schedulers import SCHEDULERS
from service import schema
from service.openapi import patterns
from service.openapi.words import FIELDS
from service.schema import KINDS, Body
from service.urls import MAX_URL_CHARACTERS

COMMON: Final = "RealtimeCommonImageGenerationParams"
REQUESTS: Final = {
    "inpaint": "RealtimeInpaintRequest",
    "img2img": "RealtimeImg2ImgRequest",
    "text2img": "RealtimeText2ImgRequest",
}
"""The names of the request schemas by the routes' names."""

_WEB_ADDRESS: Final = "[Hh][Tt][Tt][Pp][Ss]?://[^/]"

Schema = dict[str, Any]


def request_schemas() -> dict[str, Schema]:
    """The schemas of everything that is posted, by their names."""
    common = {name: _field(name, info) for name, info in Body.model_fields.items()}
    schemas: dict[str, Schema] = {
        COMMON: {
            "type": "object",
            "properties": {"key": _required_text("key"), **common},
        }
    }
    for kind, name in REQUESTS.items():
        fields = KINDS[kind].model_fields
        own = {field: info for field, info in fields.items() if field not in Body.model_fields}
        schemas[name] = {
            "type": "object",
            "allOf": [{"$ref": f"#/components/schemas/{COMMON}"}],
            "required": ["key", *(field for field, info in fields.items() if info.is_required())],
            "properties": {field: _field(field, info) for field, info in own.items()},
        }
    schemas["FetchRequest"] = {
        "type": "object",
        "required": ["key"],
        "properties": {"key": _required_text("key")},
    }
    schemas["Base64ToUrlRequest"] = {
        "type": "object",
        "required": ["key", "base64_string"],
        "properties": {name: _required_text(name) for name in ("key", "base64_string")},
    }
    return schemas


def _field(name: str, info: FieldInfo) -> Schema:
    """The schema of one field, from its validator, its default and whether it may be left out."""
    optional = not info.is_required()
    validators = [entry.func for entry in info.metadata if isinstance(entry, BeforeValidator)]
    if len(validators) != 1:
        raise TypeError(f"{name} has {len(validators)} validators; 1 can be described")
    types, bounds = _described(name, validators[0], optional=optional)
    if optional:
        types.append("null")
    found: Schema = {"type": types[0] if len(types) == 1 else types, **bounds}
    if optional and name != "seed" and info.default not in (None, ""):
        found["default"] = info.default
    return {**found, "description": FIELDS[name]}


def _described(
    name: str, validator: Callable[..., Any], *, optional: bool
) -> tuple[list[str], Schema]:
    """The JSON types and the bounds of what a validator takes, null aside."""
    if isinstance(validator, schema.Range):
        low, high, step = validator.low, validator.high, validator.step
        if step > 1:
            text = patterns.whole(patterns.multiples(low, high, step), optional=optional)
            bounds = {"minimum": low, "maximum": high, "multipleOf": step, "pattern": text}
            return ["integer", "string"], bounds
        text = (patterns.integers if validator.integral else patterns.numbers)(low, high)
        pattern = patterns.whole(text, optional=optional)
        kind = "integer" if validator.integral else "number"
        return [kind, "string"], {"minimum": low, "maximum": high, "pattern": pattern}
    if isinstance(validator, schema.Word):
        spelt = patterns.words((*validator.words, *validator.spellings))
        return ["string"], {"pattern": patterns.whole(spelt, optional=optional)}
    not_blank: Schema = {} if optional else {"pattern": patterns.NOT_BLANK}
    known: Mapping[Callable[..., Any], tuple[list[str], Schema]] = {
        schema.as_boolean: (
            ["boolean", "string", "integer"],
            {
                "minimum": 0,
                "maximum": 1,
                "pattern": patterns.whole(
                    patterns.words((*schema.TRUE, *schema.FALSE)), optional=optional
                ),
            },
        ),
        schema.as_text: (["string"], not_blank),
        schema.as_prompt: (["string"], {**not_blank, "maxLength": MAX_PROMPT_CHARACTERS}),
        schema.as_webhook: (
            ["string"],
            {
                "format": "uri",
                "pattern": f"^{patterns.SPACE}$|^{_WEB_ADDRESS}"
                if optional
                else f"^{_WEB_ADDRESS}",
                "maxLength": MAX_URL_CHARACTERS,
            },
        ),
        schema.as_track_id: (
            ["string", "integer"],
            {
                **not_blank,
                "minimum": -schema.MAX_SEED,
                "maximum": schema.MAX_SEED,
                "maxLength": schema.MAX_TRACK_ID_CHARACTERS,
            },
        ),
        schema.as_scheduler: (
            ["string"],
            {
                "pattern": patterns.whole(
                    "|".join((*SCHEDULERS, *schema.CLASSES)), optional=optional
                )
            },
        ),
    }
    if validator not in known:
        raise TypeError(f"{name} is checked by {validator}, which has no description")
    types, bounds = known[validator]
    return list(types), bounds


def _required_text(name: str) -> Schema:
    return {"type": "string", "pattern": patterns.NOT_BLANK, "description": FIELDS[name]}
