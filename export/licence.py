"""The checkpoint's licence: its identifier for ``bundle.json``, its text as a document."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine.bundle import FileRecord
from export.errors import ExportError

logger = logging.getLogger(__name__)

_NAMES: Final = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENSE-MODEL.md")
_RESERVED: Final = re.compile(r"bundle\.json|tokenizer.*\.json|.*\.onnx(\.data)?", re.IGNORECASE)


def read_licence(folder: Path, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The licence entry of the bundle.

    Args:
        folder: The checkpoint; its README's front matter names the licence.
        given: Taken instead where it is not None; holds ``id``.

    Returns:
        ``{"id": ..., "source": ...}``, empty where the checkpoint does not say.
    """
    if given is not None:
        return dict(given)
    readme = folder / "README.md"
    if readme.is_file() and is_inside(readme, folder):
        text = readme.read_text(encoding="utf-8", errors="replace")
        front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        entries = (
            dict(
                re.findall(
                    r"^(license(?:_name)?):\s*['\"]?([^'\"\n]+?)['\"]?\s*$", front[1], re.MULTILINE
                )
            )
            if front
            else {}
        )
        name = entries.get("license_name") or entries.get("license")
        if name:
            return {"id": name, "source": readme.name}
    return {"id": "see document", "source": found[0].name} if (found := texts(folder)) else {}


def texts(folder: Path) -> list[Path]:
    """The licence texts that lie in a checkpoint, and do not only lead out of it."""
    found = [folder / name for name in _NAMES if (folder / name).is_file()]
    for file in found:
        if not is_inside(file, folder):
            logger.warning("A link that leads out of the checkpoint is left out: %s", file)
    return [file for file in found if is_inside(file, folder)]


def is_inside(file: Path, folder: Path) -> bool:
    """Whether a file of a checkpoint is, links followed, in the checkpoint's folder.

    The hub's cache keeps the files of ``snapshots/COMMIT`` in ``blobs`` beside ``snapshots``.
    """
    folder, file = folder.resolve(), file.resolve()
    blobs = folder.parent.parent / "blobs"
    cached = folder.parent.name == "snapshots" and file.is_relative_to(blobs.resolve())
    return cached or file.is_relative_to(folder)


def copy_documents(documents: Sequence[Path], folder: Path) -> tuple[FileRecord, ...]:
    """Copy documents into the bundle.

    Raises:
        ExportError: For a name that occurs twice, belongs to the bundle's own files, or is missing.
    """
    records = []
    for document in documents:
        target = folder / document.name
        if target.exists() or _RESERVED.fullmatch(document.name):
            raise ExportError(f"{document}: a bundle cannot hold a second {document.name}")
        try:
            shutil.copyfile(document, target)
        except OSError as exc:
            raise ExportError(f"{document}: cannot be copied: {exc.strerror}") from exc
        records.append(FileRecord.of(target))
    return tuple(records)
