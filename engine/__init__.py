"""The Edgefill engine: a picture, a mask and a sentence in, the filled picture out.

Arrays in, arrays out. It imports numpy, OpenCV, isal, tokenizers and, when a device asks for it,
one runtime; never torch, diffusers or transformers. It opens no network connection and reads no
environment variable. From the rest of the project it imports nothing.
"""

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
