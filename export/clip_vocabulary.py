"""CLIP's tokenizer for a checkpoint that brings none: from a folder, or from OpenAI's word list.

Every Stable Diffusion of 1.x and 2.x uses the same 49408 tokens. They are taken from a diffusers
tokenizer folder (``vocab.json`` and ``merges.txt``), or worked out from OpenAI's list of merges,
``bpe_simple_vocab_16e6.txt.gz``, the way its ``simple_tokenizer.py`` does; that list comes with
the packages ``open_clip_torch`` and ``clip``, of which nothing is run.
"""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from pathlib import Path
from typing import Final

from export.entries import read_json, write_json
from export.errors import ExportError, in_a_line

LIST: Final = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES: Final = ("open_clip", "clip")
_BOS: Final = "<|startoftext|>"
_EOS: Final = "<|endoftext|>"
_MERGES: Final = 49152 - 256 - 2
"""What of the list CLIP uses: its first line is a heading, its end was cut off."""

_HELP: Final = (
    "name a diffusers tokenizer folder (vocab.json, merges.txt) or OpenAI's "
    f"{LIST}, tokenizer (--tokenizer)"
)


def write_clip_tokenizer(source: Path | None, folder: Path, *, length: int, second: bool) -> None:
    """Write a diffusers tokenizer folder.

    Args:
        source: A tokenizer folder or OpenAI's list; that of an installed package where None.
        folder: Where the tokenizer goes.
        length: Tokens of a text.
        second: For Stable Diffusion 2.x, which pads with ``!`` where 1.x pads with the end token.

    Raises:
        ExportError: When there is none, or it cannot be read.
    """
    source = _installed() if source is None else source
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        for name in ("vocab.json", "merges.txt"):
            if not (source / name).is_file():
                raise ExportError(f"{source}: holds no {name}; {_HELP}")
            shutil.copyfile(source / name, folder / name)
    else:
        vocabulary, merges = _from_list(source)
        write_json(folder / "vocab.json", vocabulary)
        lines = "\n".join(["#version: 0.2", *merges, ""])
        (folder / "merges.txt").write_text(lines, encoding="utf-8")
    pad = "!" if second else _EOS
    known = read_json(folder / "vocab.json")
    for token in (_BOS, _EOS, pad):
        if token not in known:
            raise ExportError(f"{source}: has no token {token!r}; a CLIP tokenizer is needed")
    special = {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _installed() -> Path:
    """OpenAI's list in an installed package."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            if (path := Path(place) / LIST).is_file():
                return path
    raise ExportError(
        f"a single file brings no tokenizer, and none of {', '.join(PACKAGES)} is installed; "
        f"{_HELP}, or install the list: pip install --no-deps open_clip_torch"
    )


def _from_list(path: Path) -> tuple[dict[str, int], list[str]]:
    """The vocabulary and the merges of OpenAI's list."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            merges = stream.read().split("\n")[1 : _MERGES + 1]
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise ExportError(f"{path}: cannot be read: {in_a_line(exc)}; {_HELP}") from exc
    if len(merges) < _MERGES or any(merge.count(" ") != 1 for merge in merges):
        raise ExportError(f"{path}: is not OpenAI's list of {_MERGES} merges; {_HELP}")
    symbols = _symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += [merge.replace(" ", "") for merge in merges]
    return {token: i for i, token in enumerate([*tokens, _BOS, _EOS])}, merges


def _symbols() -> list[str]:
    """A printable character for each byte, in the order of OpenAI's list."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]
