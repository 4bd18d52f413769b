"""Picture files that the command line reads and writes."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.console import USAGE, CommandError, reason

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SUFFIXES: Final = (".png", ".jpg", ".jpeg")


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """A picture file as (H, W, 3) uint8 RGB.

    Raises:
        CommandError: When it cannot be read or is no good PNG or JPEG.
    """
    from engine import InputError
    from engine.image import decode_picture

    try:
        return decode_picture(_read(path), field=str(path))
    except InputError as exc:
        raise CommandError(str(exc)) from exc


def read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """A mask file as (H, W) uint8 luminance.

    Raises:
        CommandError: When it cannot be read or is no good PNG or JPEG.
    """
    from engine import InputError
    from engine.image import decode_mask

    try:
        return decode_mask(_read(path), field=str(path))
    except InputError as exc:
        raise CommandError(str(exc)) from exc


def _read(path: Path) -> bytes:
    """All of a plain file; a FIFO or a device could give no end of bytes, or none ever."""
    from engine.image import MAX_BYTES

    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CommandError(f"cannot read {path}: is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise CommandError(f"cannot read {path}: is not a plain file")
        if status.st_size > MAX_BYTES:
            raise CommandError(
                f"{path}: has {status.st_size} bytes; at most {MAX_BYTES} are allowed"
            )
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as exc:
        raise CommandError(f"cannot read {path}: {reason(exc)}") from exc


def output_paths(output: Path, samples: int) -> list[Path]:
    """Where the pictures will go: ``name.png``, or ``name-0.png`` and so on for several.

    Raises:
        CommandError: When they could not be written there; asked before any work is done.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise CommandError(
            f"--output: {output} has the suffix {output.suffix!r}; allowed: {', '.join(SUFFIXES)}",
            code=USAGE,
        )
    paths = [output]
    if samples > 1:
        paths = [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(samples)]
    for path in paths:
        _check_writable(path)
    return paths


def _check_writable(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise CommandError(f"cannot write {path}: it is there and not a plain file")
        if path.exists() and not os.access(path, os.W_OK):
            raise CommandError(f"cannot write {path}: permission denied")
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as exc:
        raise CommandError(f"cannot write {path}: {reason(exc)}") from exc


def write_picture(path: Path, rgb: npt.NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 RGB as the suffix says; the file is whole or as it was before.

    Raises:
        CommandError: When it cannot be written.
    """
    from engine.image import encode_jpeg, encode_png

    data = encode_png(rgb) if path.suffix.lower() == ".png" else encode_jpeg(rgb)
    target = path.resolve()
    # Not from the target's name, which may be as long as names can be.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            temporary.write_bytes(data)
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as exc:
        raise CommandError(f"cannot write {path}: {reason(exc)}") from exc
