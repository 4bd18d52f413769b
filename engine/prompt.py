"""Prompts to embeddings: tokenise, encode, and remember by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from engine.cache import PROMPT, ContentCache
from engine.errors import BundleError
from engine.models import TextEncoder
from engine.prompt_chunks import ChunkEncoder


class PromptEncoder:
    """Turns prompts into (L, D) embeddings; the cache keeps those that were used last.

    Raises:
        BundleError: If the tokenizer file is damaged or does not give L tokens.
    """

    def __init__(self, tokenizer: Path, encoder: TextEncoder, cache: ContentCache) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as exc:  # the library raises plain Exception
            raise BundleError(f"{tokenizer}: is not a tokenizer: {exc}") from exc
        found = len(self._tokenizer.encode("").ids)
        if found != encoder.tokens:
            raise BundleError(
                f"{tokenizer}: gives {found} tokens, the text encoder takes {encoder.tokens}"
            )
        self._encoder = encoder
        self._cache = cache
        self._chunks = ChunkEncoder(self._tokenizer, encoder)

    def __call__(self, prompt: str, *, clip_skip: int = 0) -> npt.NDArray[np.float32]:
        """Embeddings (L, D) of a prompt, read-only; a longer prompt is cut at L tokens."""
        content = (prompt.encode(), *([b"%d" % clip_skip] if clip_skip else []))
        return self._cache.get(PROMPT, content, lambda: self._encode(prompt, clip_skip))

    def weighted(self, field: str, prompt: str, *, clip_skip: int) -> npt.NDArray[np.float32]:
        """Embeddings (n L, D) of a prompt in the ``a1111`` syntax, read-only; see ChunkEncoder."""
        return self._cache.get(
            PROMPT,
            (prompt.encode(), b"%d" % clip_skip, b"a1111"),
            lambda: self._chunks(field, prompt, clip_skip=clip_skip),
        )

    def _encode(self, prompt: str, clip_skip: int) -> npt.NDArray[np.float32]:
        return self._encoder(np.asarray(self._tokenizer.encode(prompt).ids, np.int64), clip_skip)
