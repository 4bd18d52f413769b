"""Prompts: tokenised, encoded, remembered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engine import Bundle, BundleError
from engine.cache import ContentCache
from engine.models import Floats, TextEncoder
from engine.prompt import PromptEncoder
from engine.sessions import open_session, select


class Counting(TextEncoder):
    """Counts its runs."""

    runs = 0

    def __call__(self, input_ids: npt.NDArray[np.int64], clip_skip: int = 0) -> tuple[Floats, ...]:
        self.runs += 1
        return super().__call__(input_ids, clip_skip)


@pytest.fixture
def encoder(bundle_path: Path) -> Counting:
    bundle = Bundle.open(bundle_path)
    component = bundle.components["text_encoder"]
    return Counting(open_session(select("cpu"), bundle.path, component, threads=1), component)


def test_a_prompt_is_encoded_once(bundle_path: Path, encoder: Counting) -> None:
    prompts = PromptEncoder([bundle_path / "tokenizer.json"], [encoder], ContentCache())
    (first,) = prompts("a red apple").values()
    assert first.shape == (8, 16)
    assert prompts("a red apple")["encoder_hidden_states"] is first
    assert not np.array_equal(prompts("a blue apple")["encoder_hidden_states"], first)
    assert encoder.runs == 2
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0


def test_a_long_prompt_is_cut(bundle_path: Path, encoder: Counting) -> None:
    prompts = PromptEncoder([bundle_path / "tokenizer.json"], [encoder], ContentCache())
    assert prompts("red " * 500)["encoder_hidden_states"].shape == (8, 16)


def test_a_damaged_tokenizer(tmp_path: Path, encoder: Counting) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a tokenizer"):
        PromptEncoder([tmp_path / "tokenizer.json"], [encoder], ContentCache())


def test_a_tokenizer_that_does_not_fit(
    bundle_path: Path, tmp_path: Path, encoder: Counting
) -> None:
    text = (bundle_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"Fixed": 8', '"Fixed": 9'))
    with pytest.raises(BundleError, match="gives 9 tokens, the text encoder takes 8"):
        PromptEncoder([tmp_path / "tokenizer.json"], [encoder], ContentCache())
