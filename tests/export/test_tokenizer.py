"""``tokenizer.json`` gives what transformers gives, padded and cut to the full length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.checkpoints import write_tokenizer
from export.checkpoint import Checkpoint
from export.errors import ExportError

pytest.importorskip("torch")
pytestmark = pytest.mark.export


def make(folder: Path, *, max_length: int, pad_token: str, vocab_size: int = 10_000) -> Checkpoint:
    write_tokenizer(folder / "tokenizer", max_length=max_length, pad_token=pad_token)
    empty: dict[str, Any] = {}
    return Checkpoint(
        folder=folder,
        source="",
        revision=None,
        pipeline="",
        variant={},
        text_encoder={"vocab_size": vocab_size, "max_position_embeddings": 77},
        unet=empty,
        vae=empty,
        scheduler=empty,
    )


@pytest.mark.parametrize("max_length", [77, 24])
@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "!"])
def test_equals_transformers_on_hard_strings(
    tmp_path: Path, max_length: int, pad_token: str
) -> None:
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    from export.tokenizer import HARD_STRINGS
    from export.tokenizer import write_tokenizer as export_tokenizer

    checkpoint = make(tmp_path, max_length=max_length, pad_token=pad_token)
    assert export_tokenizer(checkpoint, tmp_path / "tokenizer.json") == max_length
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fast = CLIPTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    slow = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    for text in HARD_STRINGS:
        ids = tokenizer.encode(text).ids
        assert len(ids) == max_length
        for other in (fast, slow) if text.isascii() else (fast,):
            expected = other(
                text, padding="max_length", max_length=max_length, truncation=True
            ).input_ids
            assert ids == expected, (text, type(other).__name__)
    words = tokenizer.encode("A red APPLE").tokens
    assert words[:5] == ["<|startoftext|>", "a</w>", "red</w>", "apple</w>", "<|endoftext|>"]
    assert words[5:] == [pad_token] * (max_length - 5)


def test_length_of_a_tokenizer_without_one(tmp_path: Path) -> None:
    from export.tokenizer import write_tokenizer as export_tokenizer

    checkpoint = make(tmp_path, max_length=77, pad_token="!")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["model_max_length"]
    path.write_text(json.dumps(settings))
    assert export_tokenizer(checkpoint, tmp_path / "tokenizer.json") == 77


@pytest.mark.parametrize("length", ["x", 0, 2, float("nan")])
def test_lengths_that_are_none(tmp_path: Path, length: object) -> None:
    from export.tokenizer import write_tokenizer as export_tokenizer

    checkpoint = make(tmp_path, max_length=77, pad_token="!")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    with pytest.raises(ExportError, match=r"tokenizer_config\.json: model_max_length is .* from 3"):
        export_tokenizer(checkpoint, tmp_path / "tokenizer.json")


def test_refusals(tmp_path: Path) -> None:
    from export.tokenizer import write_tokenizer as export_tokenizer

    checkpoint = make(tmp_path, max_length=77, pad_token="!", vocab_size=600)
    with pytest.raises(ExportError, match=r"gives token \d+; the text encoder has 600"):
        export_tokenizer(checkpoint, tmp_path / "tokenizer.json")
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(ExportError, match="the CLIP tokenizer cannot be read"):
        export_tokenizer(checkpoint, tmp_path / "tokenizer.json")
