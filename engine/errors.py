"""Every error the engine raises on purpose.

    EngineError
    ├── BundleError                 a model bundle is missing, damaged or not understood
    ├── InputError                  a request value is not allowed (names the field)
    ├── RequestCancelled            the ticket was cancelled before the picture was done
    ├── DeadlineMissed              the picture cannot be made by the request's deadline, or was not
    └── SessionError                a network could not be opened or run
        ├── RuntimeUnavailable      a runtime, device or checker that was asked for is not there
        ├── TensorMismatch          a tensor has another name, dtype or shape than declared
        └── DeviceLost              the device stopped answering; a new session is needed

A message says what was wrong, the value, and what is allowed.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error raised on purpose by the engine."""


class BundleError(EngineError):
    """A model bundle is missing, damaged, or of a form this version does not understand."""


class InputError(EngineError):
    """A request carries a value that is not allowed.

    Attributes:
        field: Name of the request field, for example ``"strength"``.
        message: One sentence with the value and what is allowed.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class RequestCancelled(EngineError):
    """The request was cancelled before its picture was finished."""


class DeadlineMissed(EngineError):
    """The picture cannot be made by the request's deadline, or was not."""


class SessionError(EngineError):
    """A network could not be opened or run."""


class RuntimeUnavailable(SessionError):
    """The runtime, device or safety checker that was asked for is not there; the message names
    what to install."""


class TensorMismatch(SessionError):
    """A tensor does not have the name, dtype or shape that the network declares."""


class DeviceLost(SessionError):
    """The device stopped answering in the middle of the work."""
