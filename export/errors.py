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
