"""Prompts to embeddings: tokenise, encode, and remember by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from engine.bundle import Bundle
from engine.cache import PROMPT, ContentCache
from engine.errors import BundleError
from engine.models import HIDDEN_STATES, TEXT_EMBEDS, Floats, TextEncoder, Told
from engine.prompt_chunks import ChunkEncoder


class PromptEncoder:
    """Turns prompts into what the UNet is told of them; the cache keeps those that were used last.

    Every text encoder reads the whole prompt. Their embeddings are put side by side, (L, D) in all;
    the pooled ones are those of the last that gives any.

    Raises:
        BundleError: If a tokenizer file is damaged or does not give L tokens.
    """

    def __init__(
        self,
        tokenizers: Sequence[Path],
        encoders: Sequence[TextEncoder],
        cache: ContentCache,
        *,
        force_zeros_for_empty_prompt: bool = False,
    ) -> None:
        self._readers = [
            (_tokenizer(path, encoder), encoder)
            for path, encoder in zip(tokenizers, encoders, strict=True)
        ]
        self._cache = cache
        self._chunks = ChunkEncoder(*self._readers[0])
        self._zeros: Told | None = None
        if force_zeros_for_empty_prompt:
            blank = [tuple(np.zeros(shape, np.float32) for shape in e.gives) for e in encoders]
            self._zeros = _told(_together(blank))

    @classmethod
    def of(
        cls, bundle: Bundle, encoders: Sequence[TextEncoder], cache: ContentCache
    ) -> PromptEncoder:
        """With the tokenizers of a bundle."""
        return cls(
            [bundle.path / record.file for record in bundle.tokenizers],
            encoders,
            cache,
            force_zeros_for_empty_prompt=bundle.force_zeros_for_empty_prompt,
        )

    def __call__(self, prompt: str, *, clip_skip: int = 0) -> Told:
        """What the UNet is told of a prompt, read-only; a longer one is cut at L tokens."""
        content = (prompt.encode(), *([b"%d" % clip_skip] if clip_skip else []))
        return _told(self._cache.get(PROMPT, content, lambda: self._encode(prompt, clip_skip)))

    def negative(self, prompt: str) -> Told:
        """The same of a negative prompt: of an empty one zeros, where the model was made so."""
        return self(prompt) if prompt or self._zeros is None else self._zeros

    def weighted(self, field: str, prompt: str, *, clip_skip: int) -> Floats:
        """Embeddings (n L, D) of a prompt in the ``a1111`` syntax, read-only; see ChunkEncoder.

        For one text encoder only.
        """
        return self._cache.get(
            PROMPT,
            (prompt.encode(), b"%d" % clip_skip, b"a1111"),
            lambda: self._chunks(field, prompt, clip_skip=clip_skip),
        )

    def _encode(self, prompt: str, clip_skip: int) -> tuple[Floats, ...]:
        return _together(
            [
                encoder(np.asarray(tokenizer.encode(prompt).ids, np.int64), clip_skip)
                for tokenizer, encoder in self._readers
            ]
        )


def _together(answers: Sequence[tuple[Floats, ...]]) -> tuple[Floats, ...]:
    """The embeddings of all text encoders side by side, and the last one's pooled embeddings."""
    return (np.concatenate([answer[0] for answer in answers], axis=-1), *answers[-1][1:])


def _told(encoded: tuple[Floats, ...]) -> Told:
    return dict(zip((HIDDEN_STATES, TEXT_EMBEDS), encoded, strict=False))


def _tokenizer(path: Path, encoder: TextEncoder) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises plain Exception
        raise BundleError(f"{path}: is not a tokenizer: {exc}") from exc
    found = len(tokenizer.encode("").ids)
    if found != encoder.tokens:
        raise BundleError(f"{path}: gives {found} tokens, the text encoder takes {encoder.tokens}")
    return tokenizer
