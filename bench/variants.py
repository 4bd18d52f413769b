"""What ``bench parity`` compares: a way to make the same pictures, in one line each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from engine import InpaintRequest

_GIVEN: Final = ("image", "mask", "prompt", "seed")
"""Fields that all variants share."""
_BOOLEANS: Final = {"true": True, "false": False}


class VariantError(ValueError):
    """A variant that cannot be understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to make the same pictures.

    Attributes:
        name: What its row is called.
        bundle: Folder of another bundle than the first variant's.
        request: Fields of ``InpaintRequest`` that differ.
    """

    name: str
    bundle: Path | None = None
    request: Mapping[str, Any] = field(default_factory=dict)


AS_ASKED: Final = Variant(name="as asked")
"""The first: what the others are compared with."""

VARIANTS: Final = (
    Variant(name="whole picture", request={"region": "full"}),
    Variant(name="half the steps", request={"num_inference_steps": 4}),
    Variant(name="twice the steps", request={"num_inference_steps": 16}),
    Variant(name="no guidance", request={"guidance_scale": 1.0}),
    Variant(name="guidance at the first three quarters", request={"guidance_share": 0.75}),
    Variant(name="guidance at the first half", request={"guidance_share": 0.5}),
    Variant(name="three quarters of the size", request={"working_size": 96}),
    Variant(name="half the size", request={"working_size": 64}),
    Variant(name="euler", request={"scheduler": "euler"}),
    Variant(name="dpmpp_2m", request={"scheduler": "dpmpp_2m"}),
    Variant(name="unipc", request={"scheduler": "unipc"}),
)
"""The speed-ups of the bundle that ships, compared where none is named: it makes 8 steps at 128."""


def parse(text: str) -> Variant:
    """Read ``FIELD=VALUE[,FIELD=VALUE]``, fields of ``InpaintRequest``.

    Raises:
        VariantError: Naming what is not understood, and what is allowed.
    """
    kinds = {f.name: str(f.type) for f in dataclasses.fields(InpaintRequest)}
    allowed = [name for name in kinds if name not in _GIVEN]
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in allowed:
            raise VariantError(f"{part.strip()!r} is not FIELD=VALUE; fields: {', '.join(allowed)}")
        changes[name] = _value(name, kinds[name], value)
    return Variant(name=text, request=changes)


def _value(name: str, kind: str, text: str) -> bool | int | float | str:
    try:
        if kind.startswith("bool"):
            return _BOOLEANS[text.lower()]
        if kind.startswith("int"):
            return int(text)
        return float(text) if kind.startswith("float") else text
    except (KeyError, ValueError) as exc:
        raise VariantError(f"{name} is {text!r}; must be a {kind.split(' |')[0]}") from exc
