"""Every error the exporter raises on purpose.

    ExportError                     a checkpoint cannot be read, converted or written
    └── ParityError                 a converted network is not the one it was made from

A message says what was wrong, the value, and what is allowed.
"""

from __future__ import annotations


class ExportError(Exception):
    """A checkpoint cannot be found, read, converted or written as a bundle."""


class ParityError(ExportError):
    """A converted network differs from the one it was made from by more than the limits."""


def in_a_line(error: BaseException) -> str:
    """What a library said, cut to its first line; the name of the error where it said nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
