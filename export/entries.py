"""The JSON files of a checkpoint, and their entries checked before anything is computed from them.

A checkpoint comes from anywhere: an entry may be missing, null, or of any type and size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import ExportError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        ExportError: When it is missing, no JSON, nested beyond all measure, or no object.
    """
    if path.exists() and not path.is_file():
        raise ExportError(f"{path}: is not a plain file")
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise ExportError(
            f"{path}: is missing; a diffusers folder (model_index.json, unet/, vae/, "
            "text_encoder/, tokenizer/, scheduler/) or a name on the hub is needed"
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise ExportError(f"{path}: cannot be read as JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ExportError(f"{path}: holds {type(value).__name__}; expected an object")
    return value


def write_json(path: Path, entries: Mapping[str, Any]) -> None:
    """Write a JSON object; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def class_of(index: Mapping[str, Any], name: str) -> Any:
    """The class of a part, which ``model_index.json`` gives as ``["library", "class"]``."""
    entry = index.get(name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else entry


def require_whole(where: Path, entries: Mapping[str, Any], *keys: str) -> None:
    """Raise unless those of the entries that are there are whole numbers from 1."""
    for key in keys:
        if key in entries and not _is_whole(entries[key]):
            raise ExportError(
                f"{where}: {key} is {entries[key]!r}; a whole number from 1 is needed"
            )


def require_list(where: Path, entries: Mapping[str, Any], key: str, *, smallest: int = 1) -> None:
    """Raise unless the entry, where it is there, is a list of whole numbers from ``smallest``."""
    if key not in entries:
        return
    value = entries[key]
    if not (isinstance(value, list) and value and all(_is_whole(v, smallest) for v in value)):
        raise ExportError(
            f"{where}: {key} is {value!r}; a list of whole numbers from {smallest} is needed"
        )


def require_sides(where: Path, entries: Mapping[str, Any], key: str) -> None:
    """Raise unless the entry is null, a whole number from 1, or a height and a width."""
    value = entries.get(key)
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    if value is not None and not all(map(_is_whole, sides)):
        raise ExportError(
            f"{where}: {key} is {value!r}; a whole number from 1, or two of them, is needed"
        )


def require_factor(where: Path, entries: Mapping[str, Any], key: str) -> None:
    """Raise unless the entry is null or a number above 0."""
    value = entries.get(key)
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise ExportError(f"{where}: {key} is {value!r}; a number above 0 is needed")


def _is_whole(value: Any, smallest: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest
