"""``tokenizer.json``: the checkpoint's CLIP tokenizer as one file that needs no transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from export.checkpoint import Checkpoint
from export.errors import ExportError, in_a_line

HARD_STRINGS: Final = (
    "",
    " ",
    "a red apple",
    "A RED APPLE, (masterpiece:1.2), 8k!!!",
    "  many \t spaces\n and\r\nlines  ",
    "it's the dog's; they're, we've, I'm, you'll, he'd",
    "naïve café, Ångström, cafe\u0301, Straße, İstanbul",
    "日本語の猫 and 한국어 кошка ἀρχή 你好",
    "emoji 🍎🐈‍⬛👩🏽‍🚀 ½ ² № ﬁ",
    "1234567890 3.14 -- __ ... @#$%^&*",
    "<|endoftext|> in the middle <|startoftext|>",
    "<html>&amp; \u200b zero width \ufeff",
    "word " * 200,
    "antidisestablishmentarianism" * 12,
)

_SHORTEST: Final = 3
"""Tokens of a text of one token, with its begin and its end."""


def write_tokenizers(checkpoint: Checkpoint, folder: Path) -> tuple[list[Path], int]:
    """Write the tokenizer of every text encoder; see ``write_tokenizer``.

    Returns:
        The files, and the number of tokens L.

    Raises:
        ExportError: Where one cannot be read, or they give different numbers of tokens.
    """
    files, lengths = [], {}
    for text_encoder in checkpoint.text_encoders:
        name = text_encoder.replace("text_encoder", "tokenizer")
        files.append(folder / f"{name}.json")
        lengths[name] = write_tokenizer(checkpoint, files[-1], name=name, text_encoder=text_encoder)
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}'s is {length}" for name, length in lengths.items())
        raise ExportError(
            f"{checkpoint.folder}: model_max_length differs: {found}; one length is supported"
        )
    return files, lengths["tokenizer"]


def write_tokenizer(
    checkpoint: Checkpoint,
    path: Path,
    *,
    name: str = "tokenizer",
    text_encoder: str = "text_encoder",
) -> int:
    """Write a tokenizer with truncation and padding to its full length built in.

    Args:
        checkpoint: The checkpoint.
        path: The file to write.
        name: Folder of the tokenizer.
        text_encoder: Folder of the network that it is for.

    Returns:
        The number of tokens L that it gives for any text.

    Raises:
        ExportError: Where it cannot be read, or would not give what transformers gives.
    """
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizerFast

    folder, reader = checkpoint.folder / name, checkpoint.text_encoders[text_encoder]
    try:
        original = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # the tokenizers library raises plain Exception
        raise ExportError(f"{folder}: the CLIP tokenizer cannot be read: {in_a_line(exc)}") from exc
    length = _length(original, folder, reader)
    tokenizer = Tokenizer.from_str(original.backend_tokenizer.to_str())
    tokenizer.enable_truncation(max_length=length)
    tokenizer.enable_padding(
        length=length, pad_id=original.pad_token_id, pad_token=str(original.pad_token)
    )
    tokenizer.save(str(path))
    _compare(Tokenizer.from_file(str(path)), original, length, folder, reader)
    return length


def _length(original: Any, folder: Path, reader: Mapping[str, Any]) -> int:
    """The tokenizer's length; transformers says 1e30 where its configuration names none."""
    positions = int(reader.get("max_position_embeddings", 77))
    length = original.model_max_length
    if not isinstance(length, int | float) or not length >= _SHORTEST:
        raise ExportError(
            f"{folder / 'tokenizer_config.json'}: model_max_length is "
            f"{length!r}; a whole number from {_SHORTEST} is needed"
        )
    return positions if length > 1_000_000 else int(length)


def _compare(
    found: Any, original: Any, length: int, folder: Path, reader: Mapping[str, Any]
) -> None:
    rows = reader.get("vocab_size")
    for text in HARD_STRINGS:
        expected = original(
            text, padding="max_length", max_length=length, truncation=True
        ).input_ids
        ids = found.encode(text).ids
        if ids != expected:
            raise ExportError(
                f"{folder}: the exported tokenizer gives {ids} for {text!r}; "
                f"transformers gives {expected}"
            )
        if rows is not None and max(ids) >= rows:
            raise ExportError(f"{folder}: gives token {max(ids)}; the text encoder has {rows}")
