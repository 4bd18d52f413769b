"""Weighted prompts of any length to embeddings, by the rules of AUTOMATIC1111's web UI.

The tokens are laid into chunks of as many as the text encoder takes between its begin and its end
(75 for CLIP). A chunk that is full is broken after its last comma where that lies at most
``COMMA_REACH`` tokens back. Each chunk is encoded on its own; then every token's row is multiplied
by its weight and the chunk by one number, so that its mean is what it was. The chunks' embeddings
follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from engine.errors import InputError
from engine.models import TextEncoder
from engine.prompt_syntax import parse

Floats = npt.NDArray[np.float32]

MAX_CHUNKS: Final = 8
COMMA_REACH: Final = 20
COMMA: Final = ",</w>"
"""The token of a comma in CLIP's vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens that are encoded together, without begin, end and padding, and a weight for each."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


class ChunkEncoder:
    """Turns weighted prompts into embeddings (n L, D) of n chunks.

    Args:
        tokenizer: As the bundle has it, with padding to L tokens; it is not changed.
        encoder: Takes L tokens.
    """

    def __init__(self, tokenizer: Tokenizer, encoder: TextEncoder) -> None:
        self._padding = tokenizer.padding
        self._padded = tokenizer
        self._encoder = encoder
        self._whole: Tokenizer | None = None

    def __call__(self, field: str, prompt: str, *, clip_skip: int = 0) -> Floats:
        """Embeddings of a prompt in the ``a1111`` syntax.

        Args:
            field: The request's field that holds it.
            prompt: The text; an empty one has one chunk.
            clip_skip: How many of the text encoder's last layers are left out.

        Raises:
            InputError: If the prompt is refused, or needs more than ``MAX_CHUNKS`` chunks.
        """
        tokenizer = self._tokenizer()
        begin, end = tokenizer.encode("").ids
        pad = self._padding["pad_id"]
        pieces = (
            [
                (tokenizer.encode(piece.text, add_special_tokens=False).ids, piece.weight)
                for piece in section
            ]
            for section in parse(field, prompt)
        )
        size = self._encoder.tokens - 2
        encoded = []
        for chunk in fill(field, pieces, size=size, comma=tokenizer.token_to_id(COMMA)):
            rest = size - len(chunk.tokens)
            ids = np.array([begin, *chunk.tokens, end, *[pad] * rest], np.int64)
            weights = np.array([1.0, *chunk.weights, *[1.0] * (rest + 1)], np.float32)
            encoded.append(weigh(field, self._encoder(ids, clip_skip)[0], weights))
        return np.concatenate(encoded)

    def _tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer without truncation and padding."""
        if self._whole is None:
            whole = Tokenizer.from_str(self._padded.to_str())
            whole.no_truncation()
            whole.no_padding()
            if self._padding is None or len(whole.encode("").ids) != 2:
                reason = "the model's tokenizer has no begin, end and padding; allowed: plain"
                raise InputError("prompt_syntax", f"is 'a1111', but {reason}")
            self._whole = whole
        return self._whole


def fill(
    field: str,
    sections: Iterable[Iterable[tuple[Sequence[int], float]]],
    *,
    size: int,
    comma: int | None,
) -> list[Chunk]:
    """Lay weighted tokens into chunks; every section but the first begins a new one.

    Args:
        field: The request's field that holds the prompt.
        sections: Of pieces: their tokens, and the weight of all of these.
        size: Tokens of a full chunk.
        comma: The token after which a full chunk may be broken.

    Returns:
        At least one chunk. A section without tokens makes an empty one, unless it is the last.

    Raises:
        InputError: If there are more than ``MAX_CHUNKS``.
    """
    layout = _Layout(field, size=size, comma=comma)
    for i, section in enumerate(sections):
        if i > 0:
            layout.close(len(layout.tokens))
        for tokens, weight in section:
            for token in tokens:
                layout.add(token, weight)
    if layout.tokens or not layout.chunks:
        layout.close(len(layout.tokens))
    return layout.chunks


class _Layout:
    """The chunks so far, and the tokens of the one that is being filled."""

    def __init__(self, field: str, *, size: int, comma: int | None) -> None:
        self.chunks: list[Chunk] = []
        self.tokens: list[int] = []
        self._weights: list[float] = []
        self._field, self._size, self._comma = field, size, comma
        self._last_comma: int | None = None

    def add(self, token: int, weight: float) -> None:
        """Lay down a token; a full chunk is closed first.

        A comma that comes when the chunk is full begins the next one and is not broken after.
        """
        count, last = len(self.tokens), self._last_comma
        if count == self._size:
            near = last is not None and count - last <= COMMA_REACH
            self.close(last + 1 if near and last is not None and token != self._comma else count)
        elif token == self._comma:
            self._last_comma = count
        self.tokens.append(token)
        self._weights.append(weight)

    def close(self, count: int) -> None:
        """Make a chunk of the first ``count`` tokens; the others begin the next."""
        if len(self.chunks) == MAX_CHUNKS:
            allowed = f"at most {MAX_CHUNKS} are allowed"
            raise InputError(self._field, f"needs more chunks of {self._size} tokens; {allowed}")
        made = Chunk(tokens=tuple(self.tokens[:count]), weights=tuple(self._weights[:count]))
        self.chunks.append(made)
        self.tokens, self._weights = self.tokens[count:], self._weights[count:]
        self._last_comma = None


def weigh(field: str, hidden: Floats, weights: Floats) -> Floats:
    """Multiply the rows of (L, D) by weights (L,), and all by one number, so that the mean stays.

    Raises:
        InputError: If that is impossible, since the weights make the mean zero.
    """
    if (weights == 1).all():
        return hidden
    weighted = hidden * weights[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.float32(hidden.mean(dtype=np.float64) / weighted.mean(dtype=np.float64))
        weighted *= ratio
    if not np.isfinite(weighted).all():
        raise InputError(field, "has weights that cancel each other out")
    return weighted


def pad_to_longest(texts: Sequence[Floats], empty: Callable[[], Floats]) -> tuple[Floats, ...]:
    """Let all texts (n L, D) have as many chunks as the longest: ``empty()`` (L, D) follows, which
    is asked for only where it does."""
    longest = max(map(len, texts))
    if all(len(text) == longest for text in texts):
        return tuple(texts)
    chunk = empty()
    return tuple(
        text
        if len(text) == longest
        else np.concatenate([text, *[chunk] * ((longest - len(text)) // len(chunk))])
        for text in texts
    )
