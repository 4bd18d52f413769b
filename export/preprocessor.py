"""How a checkpoint's safety checker sees pictures: its ``preprocessor_config.json``, checked.

The engine repeats the steps of transformers' CLIPImageProcessor (``engine.safety_checker``); a
checkpoint that asks for others is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from export.errors import ExportError

_STEPS: Final = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_BICUBIC: Final = 3
_SIDE: Final = 224
_LARGEST_SIDE: Final = 4096
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessor:
    """Sizes in pixels, and what is taken off and divided by per channel; see ``Safety``."""

    shortest_edge: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_preprocessor(where: Path, entries: Mapping[str, Any]) -> Preprocessor:
    """Check the entries of a CLIPImageProcessor or CLIPFeatureExtractor; what is not given is
    CLIP's own.

    Raises:
        ExportError: Naming the entry, its value and what is supported.
    """
    for step in _STEPS:
        if entries.get(step, True) is not True:
            raise ExportError(f"{where}: {step} is {entries[step]!r}; only true is supported")
    if entries.get("resample", _BICUBIC) != _BICUBIC:
        raise ExportError(
            f"{where}: resample is {entries['resample']!r}; only {_BICUBIC} (bicubic) is supported"
        )
    factor = entries.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or abs(factor - 1 / 255) > 1e-9:
        raise ExportError(f"{where}: rescale_factor is {factor!r}; only 1/255 is supported")
    edge = _side(where, entries, "size", ("shortest_edge",))
    crop = _side(where, entries, "crop_size", ("height", "width"))
    if crop > edge:
        raise ExportError(f"{where}: crop_size is {crop}, above the size {edge}")
    return Preprocessor(
        shortest_edge=edge,
        crop=crop,
        mean=_channels(where, entries, "image_mean", _MEAN),
        std=_channels(where, entries, "image_std", _STD),
    )


def _side(where: Path, entries: Mapping[str, Any], key: str, parts: tuple[str, ...]) -> int:
    """One number of pixels: as it is, or given for each of the parts."""
    value = entries.get(key, _SIDE)
    sides = [value.get(part) for part in parts] if isinstance(value, Mapping) else [value]
    side: Any = sides[0]
    whole = isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST_SIDE
    if not whole or any(other != side for other in sides):
        raise ExportError(
            f"{where}: {key} is {value!r}; a whole number from 1 to {_LARGEST_SIDE} is needed, "
            f"as it is or as one value of {' and '.join(parts)}"
        )
    return int(side)


def _channels(
    where: Path, entries: Mapping[str, Any], key: str, usual: tuple[float, float, float]
) -> tuple[float, float, float]:
    values = entries.get(key)
    if values is None:
        return usual
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise ExportError(f"{where}: {key} is {values!r}; 3 numbers are needed")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
