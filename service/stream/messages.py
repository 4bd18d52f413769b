"""Frames to messages, and messages to requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from engine import Bundle
from service.choices import refuse_unfit
from service.errors import ApiError, words
from service.painter import refuse_unchecked
from service.schema import PARSED_AT_ONCE, InpaintBody, is_absent, parse_json
from service.stream.pictures import FIELDS, Source

BINARY: Final = "binary"
_KEPT: Final = set(InpaintBody.model_fields) - {"key", *FIELDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a client, its pictures still in the form in which they came.

    Attributes:
        values: The JSON object.
        pictures: What came in binary frames, by field.
        refusal: Why it cannot be used, if so.
    """

    values: Mapping[str, Any]
    pictures: Mapping[str, bytes]
    refusal: ApiError | None = None


class Assembler:
    """Puts messages together out of frames."""

    def __init__(self) -> None:
        self._head: Message | None = None
        self._missing: list[str] = []

    async def add(self, frame: str | bytes) -> list[Message]:
        """Take the next frame; the messages that are whole now, mostly one."""
        if isinstance(frame, bytes):
            return self._add_picture(frame)
        cut_off = []
        if self._head is not None:
            sentence = f"The {words(self._missing[0])} did not follow its message."
            cut_off = [replace(self._head, refusal=ApiError(400, sentence))]
            self._head = None
        message = await _parse(frame)
        if message.refusal is not None or not self._missing_of(message):
            return [*cut_off, message]
        self._head, self._missing = message, self._missing_of(message)
        return cut_off

    def _add_picture(self, frame: bytes) -> list[Message]:
        if self._head is None:
            refusal = ApiError(400, "A binary frame came that no message had announced.")
            return [Message(values={}, pictures={}, refusal=refusal)]
        pictures = {**self._head.pictures, self._missing.pop(0): frame}
        self._head = replace(self._head, pictures=pictures)
        if self._missing:
            return []
        whole, self._head = self._head, None
        return [whole]

    @staticmethod
    def _missing_of(message: Message) -> list[str]:
        return list(message.values.get(BINARY) or ())


async def _parse(frame: str) -> Message:
    """A text frame; a large one is parsed in a thread, so that it does not hold up anybody."""
    try:
        if len(frame) <= PARSED_AT_ONCE:
            values = parse_json(frame, "message")
        else:
            values = await asyncio.to_thread(parse_json, frame, "message")
        follows = values.get(BINARY)
        if not is_absent(follows) and not _are_fields(follows):
            raise ApiError(400, f"The binary field must be a list of {' and '.join(FIELDS)}.")
    except ApiError as exc:
        return Message(values={}, pictures={}, refusal=exc)
    return Message(values=values, pictures={})


def _are_fields(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return False
    return len(set(value)) == len(value) and set(value) <= set(FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for now: a checked request and its pictures."""

    body: InpaintBody
    sources: Mapping[str, Source]


class Wishes:
    """What a client has asked for so far: each message changes some of it.

    Args:
        safety_checker: The name of the engine's safety checker, if it has one.
        bundle: What the engine works with.
    """

    def __init__(self, safety_checker: str | None, bundle: Bundle) -> None:
        self._safety_checker = safety_checker
        self._bundle = bundle
        self._values: dict[str, Any] = {}
        self._sources: dict[str, Source] = {}
        self._made: tuple[dict[str, Any], dict[str, Source]] | None = None

    def change(self, message: Message) -> Wish:
        """Take a message's changes.

        Raises:
            ApiError: 400, or 503 for a check that cannot be made, with one sentence; then nothing
                has changed.
        """
        if message.refusal is not None:
            raise message.refusal
        values = self._values | {k: v for k, v in message.values.items() if k in _KEPT}
        sources = dict(self._sources)
        pictures: dict[str, Any] = {}
        for field in FIELDS:
            sent: Any = message.pictures.get(field, message.values.get(field))
            if isinstance(sent, bytes) or (isinstance(sent, str) and not is_absent(sent)):
                sources[field] = Source(field, sent)
            elif field in message.values:  # taken back, or no picture at all
                sources.pop(field, None)
                pictures[field] = sent
            if field in sources:
                pictures[field] = sources[field].summary
        body = InpaintBody.parse(values | pictures)
        if body.webhook is not None:
            raise ApiError(400, "The webhook cannot be used in a stream.")
        if body.instant_response:
            raise ApiError(400, "The instant response cannot be used in a stream.")
        refuse_unchecked(body, self._safety_checker)
        refuse_unfit(body, self._bundle)
        self._values, self._sources = values, sources
        return Wish(body=body, sources=sources)

    def made(self) -> None:
        """There is a picture of what is asked for now."""
        self._made = self._values, self._sources

    def go_back(self) -> None:
        """What is asked for now cannot be done: what there was a picture of last counts again.
        Where there was none, it stands to be mended."""
        if self._made is not None:
            self._values, self._sources = self._made
