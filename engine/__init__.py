"""The Edgefill engine: a picture, a mask and a sentence in, the filled picture out.

Arrays in, arrays out. It imports numpy, OpenCV, isal, tokenizers and, when a device asks for it,
one runtime; never torch, diffusers or transformers. It opens no network connection and reads no
environment variable. From the rest of the project it imports nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.engine import Engine
    from engine.errors import (
        BundleError,
        DeadlineMissed,
        DeviceLost,
        EngineError,
        InputError,
        RequestCancelled,
        RuntimeUnavailable,
        SessionError,
        TensorMismatch,
    )
    from engine.plan import Plan
    from engine.request import InpaintRequest, InpaintResult, Timings
    from engine.ticket import Ticket

__all__ = [
    "Bundle",
    "BundleError",
    "DeadlineMissed",
    "DeviceLost",
    "Engine",
    "EngineError",
    "InpaintRequest",
    "InpaintResult",
    "InputError",
    "Plan",
    "RequestCancelled",
    "RuntimeUnavailable",
    "SessionError",
    "TensorMismatch",
    "Ticket",
    "Timings",
]

_HOMES: Final = {
    "Bundle": "bundle",
    "Engine": "engine",
    "InpaintRequest": "request",
    "InpaintResult": "request",
    "Plan": "plan",
    "Ticket": "ticket",
    "Timings": "request",
}


if not TYPE_CHECKING:  # a type checker would take every name for one that is there

    def __getattr__(name: str) -> object:
        """Import a public name when it is asked for: a process that only decodes pictures has no
        use for the rest."""
        if name in __all__:
            return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
