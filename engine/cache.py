"""What the networks said before, found again by content.

A prompt's embeddings and a picture's moments depend on nothing but what the network was fed, so
they are kept under a digest of exactly that. What is kept is the network's own answer, before
anything is drawn or scaled: a result has the same bytes with the cache and without it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Answer = TypeVar("Answer", Floats, tuple[Floats, ...])
"""What a network says: one array, or several that belong together."""

PROMPT: Final = "prompt"
PICTURE: Final = "picture"
MASKED_PICTURE: Final = "masked_picture"
KINDS: Final = (PROMPT, PICTURE, MASKED_PICTURE)
"""Embeddings of prompts, moments of pictures, moments of pictures whose hole is blank."""

CACHE_BYTES: Final = 256 << 20
"""What all kinds together may hold unless told otherwise; nothing is taken before it is needed."""

ENTRY_BYTES: Final = 512
"""What an entry takes beside its arrays, counted with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatistics:
    """How one kind fares.

    Attributes:
        hits: How often an answer was found.
        misses: How often the network had to run.
        entries: Answers held now.
        bytes: What they take.
    """

    hits: int
    misses: int
    entries: int
    bytes: int


@dataclass(slots=True)
class _Tally:
    hits: int = 0
    misses: int = 0
    entries: int = 0
    bytes: int = 0


class ContentCache:
    """Answers of networks by a digest of what they were fed; those used last are kept.

    Safe to use from any thread; two that miss the same content at once both make it.

    Args:
        limit: Most bytes that all kinds together may hold; 0 keeps nothing.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit: Final = limit
        self._kept: OrderedDict[tuple[str, bytes], Floats | tuple[Floats, ...]] = OrderedDict()
        self._tallies: Final = {kind: _Tally() for kind in KINDS}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(
        self,
        kind: str,
        content: Iterable[bytes | npt.NDArray[Any]],
        make: Callable[[], Answer],
    ) -> Answer:
        """What ``make`` gives for this content, read-only; it is called only when that is unknown.

        Args:
            kind: One of ``KINDS``.
            content: All that ``make`` depends on; of arrays the shape counts too.
            make: Runs the network; its answer must be arrays of their own.
        """
        key = (kind, _digest(content)) if self.limit else None
        with self._lock:
            found = None if key is None else self._kept.get(key)
            if key is not None and found is not None:
                self._kept.move_to_end(key)
                self._tallies[kind].hits += 1
                return cast(Answer, found)
            self._tallies[kind].misses += 1
        made = make()
        for array in _arrays(made):
            array.flags.writeable = False
        if key is not None:
            with self._lock:
                self._keep(key, made)
        return made

    def statistics(self) -> dict[str, CacheStatistics]:
        """The figures of every kind as they stand now."""
        with self._lock:
            return {
                kind: CacheStatistics(
                    hits=tally.hits, misses=tally.misses, entries=tally.entries, bytes=tally.bytes
                )
                for kind, tally in self._tallies.items()
            }

    def _keep(self, key: tuple[str, bytes], made: Floats | tuple[Floats, ...]) -> None:
        if key in self._kept or _bytes(made) > self.limit:
            return
        self._kept[key] = made
        self._count(key[0], made, 1)
        while self._bytes > self.limit:
            (kind, _), gone = self._kept.popitem(last=False)
            self._count(kind, gone, -1)

    def _count(self, kind: str, made: Floats | tuple[Floats, ...], sign: int) -> None:
        size, tally = sign * _bytes(made), self._tallies[kind]
        tally.entries += sign
        tally.bytes += size
        self._bytes += size


def _arrays(made: Floats | tuple[Floats, ...]) -> tuple[Floats, ...]:
    return made if isinstance(made, tuple) else (made,)


def _bytes(made: Floats | tuple[Floats, ...]) -> int:
    return sum(array.nbytes for array in _arrays(made)) + ENTRY_BYTES


def _digest(content: Iterable[bytes | npt.NDArray[Any]]) -> bytes:
    """SHA-256: pictures of different clients must not be taken for each other, whoever tries."""
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, bytes):
            digest.update(f"{len(part)};".encode())
            digest.update(part)
        else:
            digest.update(f"{part.dtype}{part.shape};".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.digest()
