"""Every error the service raises on purpose.

    ServiceError
    ├── ApiError          a request that is answered with ``{"status": "error", "message": ...}``
    ├── SettingsError     an EDGEFILL_ variable has a value that is not allowed
    ├── FetchError        a picture could not be fetched; says why, for the log only
    └── StorageError      pictures cannot be kept or read now; says why, for the log only

The message of an ``ApiError`` goes to the client: one sentence, nothing about the inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.errors import InputError

REASONS: Final = {
    400: "bad_request",
    401: "unauthorised",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_body",
    413: "too_large",
    429: "queue_full_key",
    500: "internal",
    503: "unavailable",
}
"""What a refused request is counted as, by its status, where nothing more exact is said."""


FAILED: Final = "The engine failed to make the picture."
BUSY: Final = "The server is busy. Please try again later."


class ServiceError(Exception):
    """Base of every error raised on purpose by the service."""


class SettingsError(ServiceError):
    """An ``EDGEFILL_`` variable has a value that is not allowed."""


class FetchError(ServiceError):
    """A picture could not be fetched. The message holds details that a client must not see.

    Attributes:
        reason: What the client may know, as the end of a sentence about its picture.
        kind: What it is counted as; one of ``service.fetch_kinds.KINDS``, or empty where the
            cause tells.
    """

    def __init__(
        self, detail: str, *, reason: str = "could not be fetched from its URL", kind: str = ""
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.kind = kind


class StorageError(ServiceError):
    """Pictures cannot be kept or read now. The message holds details that a client must not see.

    Attributes:
        reason: What the client may know, as a sentence.
    """

    def __init__(self, detail: str, *, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ApiError(ServiceError):
    """A request that cannot be served.

    Attributes:
        status: The HTTP status code.
        message: One sentence for the client.
        headers: Extra response headers, for example ``Retry-After``.
        extra: Further entries of the answer's body, for example ``retry_after``.
        reason: What the refusal is counted as, one of ``service.metrics.REFUSALS``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, int | str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})
        self.reason = reason or REASONS.get(status, "other")


def words(field: str) -> str:
    """The name of a field as the contract's sentences write it: ``init_image``: "init image"."""
    return field.replace("_", " ")


def unkept(reason: str) -> ApiError:
    """The answer while pictures cannot be kept.

    Args:
        reason: Why, as a sentence.
    """
    return ApiError(503, reason, headers={"Retry-After": "10"}, reason="store")


def refused_value(error: InputError, *, field: str | None = None) -> ApiError:
    """The answer to a value that the engine does not take.

    Args:
        error: What the engine said.
        field: The contract's name of the field, where the engine's is another one.
    """
    message = error.message.rstrip(".")
    return ApiError(400, f"The {words(field or error.field)} {message}.")
