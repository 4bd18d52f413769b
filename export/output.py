"""Where a bundle appears: whole or not at all.

It is written into a hidden folder beside its place and renamed when it is finished. A bundle that
lies there is replaced only when that is asked for, anything else never.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.bundle import MANIFEST
from export.errors import ExportError


@contextmanager
def staged(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write the bundle into; on success it becomes ``output``, on failure it goes.

    Raises:
        ExportError: When ``output`` holds something that may not be replaced.
    """
    require_free(output, overwrite=overwrite)
    output = output.absolute()
    # Not from the output's name, which may be as long as names can be.
    folder = output.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as exc:
        raise ExportError(f"{output}: cannot be written: {exc.strerror}") from exc
    try:
        yield folder
        _publish(folder, output, overwrite=overwrite)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def called(folder: Path, source: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors about a folder that goes again speak of what it was made from."""
    try:
        yield
    except ExportError as exc:
        if str(folder) not in str(exc):
            raise
        raise type(exc)(str(exc).replace(str(folder), os.fspath(source))) from exc


def require_free(output: Path, *, overwrite: bool) -> None:
    """Raise unless a bundle may be put at ``output``.

    Raises:
        ExportError: When something lies there that may not be replaced, or it lies in a bundle,
            or the system does not allow a look.
    """
    try:
        _require_free(output, overwrite=overwrite)
    except (OSError, RuntimeError) as exc:  # RuntimeError: links that lead in a circle
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise ExportError(f"{output}: cannot be written: {why}") from exc


def _require_free(output: Path, *, overwrite: bool) -> None:
    for parent in output.resolve().parents:
        if (parent / MANIFEST).exists():
            raise ExportError(f"{output}: lies in the bundle {parent}; name a folder outside of it")
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise ExportError(f"{output}: is not a folder; a bundle is a folder")
    files = {entry.name for entry in output.iterdir()}
    if not files:
        return
    if MANIFEST not in files:
        raise ExportError(f"{output}: holds other files; name an empty or a new folder")
    if not overwrite:
        raise ExportError(f"{output}: holds a bundle already; allow overwriting to replace it")
    strangers = sorted(files - _listed(output / MANIFEST) - {MANIFEST})
    if strangers:
        raise ExportError(f"{output}: {strangers[0]} is no part of the bundle; take it out first")


def _listed(manifest: Path) -> set[str]:
    """Every ``file`` entry of a manifest, which need not be valid otherwise."""
    found: set[str] = set()

    def collect(entry: dict[str, object]) -> dict[str, object]:
        if isinstance(name := entry.get("file"), str):
            found.add(name)
        return entry

    try:
        json.loads(manifest.read_bytes(), object_hook=collect)
    except (OSError, ValueError, RecursionError):
        return set()
    return found


def _publish(folder: Path, output: Path, *, overwrite: bool) -> None:
    require_free(output, overwrite=overwrite)
    if not output.exists():
        folder.rename(output)
        return
    old = folder.with_suffix(".replaced")
    output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
