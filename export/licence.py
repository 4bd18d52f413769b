"""The checkpoint's licence: its identifier for ``bundle.json``, its text as a document."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine.bundle import FileRecord
from export.errors import ExportError

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
    if readme.is_file():
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
    """The licence texts that lie in a checkpoint."""
    return [folder / name for name in _NAMES if (folder / name).is_file()]


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
