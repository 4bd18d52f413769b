"""Prompts to embeddings: tokenise, encode, and remember by content."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from engine.errors import BundleError
from engine.models import TextEncoder

_CACHE_BYTES: Final = 64 << 20


class PromptEncoder:
    """Turns prompts into (L, D) embeddings; the most recent ones are kept, up to 64 MiB.

    Raises:
        BundleError: If the tokenizer file is damaged or does not give L tokens.
    """

    def __init__(self, tokenizer: Path, encoder: TextEncoder) -> None:
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
        self._kept: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()
        self._bytes = 0

    def __call__(self, prompt: str) -> npt.NDArray[np.float32]:
        """Embeddings (L, D) of a prompt, read-only; a longer prompt is cut at L tokens."""
        kept = self._kept.get(prompt)
        if kept is not None:
            self._kept.move_to_end(prompt)
            return kept
        ids = np.asarray(self._tokenizer.encode(prompt).ids, np.int64)
        embeddings = self._encoder(ids)
        embeddings.flags.writeable = False
        self._kept[prompt] = embeddings
        self._bytes += embeddings.nbytes
        while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return embeddings
