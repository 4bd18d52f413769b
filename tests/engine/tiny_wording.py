"""The tiny bundle with what prompts can ask for: begin and end tokens, a comma, layers to skip."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from onnx import helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from engine.bundle import SKIPPED_STATES, Bundle, Component, FileRecord, TensorSpec
from engine.prompt_chunks import COMMA
from tests.engine import tiny

BOS, EOS, PAD = 12, 13, 14
WORDS = ("a", "an", "the", "red", "green", "blue", "apple", "cat", "dog", "sky", "bad")
VOCABULARY = {"?": 0} | {word: i for i, word in enumerate(WORDS, start=1)}
VOCABULARY |= {"<bos>": BOS, "<eos>": EOS, "<pad>": PAD, COMMA: 15}
SKIPS = 2


def make_wording_bundle(folder: Path) -> Path:
    """Write the tiny bundle with chunks of 6 tokens and 2 layers to skip; returns its folder."""
    bundle = Bundle.open(tiny.make_bundle(folder))
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    tokenizer.enable_truncation(tiny.TOKENS)
    tokenizer.enable_padding(length=tiny.TOKENS, pad_id=PAD, pad_token="<pad>")
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    dataclasses.replace(
        bundle,
        tokenizer=FileRecord.of(path),
        components={**bundle.components, "text_encoder": _text_encoder(folder)},
    ).write()
    return folder


def _text_encoder(folder: Path) -> Component:
    """What a token says depends on all tokens before it; each layer says something else."""
    rng = np.random.default_rng(11)
    tokens, width = tiny.TOKENS, tiny.WIDTH
    nodes = []
    for layer in ("last_hidden_state", "first", "second"):
        nodes += [
            helper.make_node("Gather", [f"{layer}_table", "input_ids"], [f"{layer}_words"]),
            helper.make_node("MatMul", ["before", f"{layer}_words"], [layer]),
        ]
    nodes += [
        helper.make_node("Unsqueeze", [name, "axis"], [f"{name}_row"])
        for name in ("first", "second")
    ]
    nodes.append(helper.make_node("Concat", ["first_row", "second_row"], [SKIPPED_STATES], axis=1))
    shape = (tiny.VOCABULARY, width)
    weights = {
        f"{layer}_table": rng.standard_normal(shape).astype(np.float32) + 0.2
        for layer in ("last_hidden_state", "first", "second")
    }
    return tiny._save(
        folder / "text_encoder.onnx",
        nodes,
        weights
        | {
            "before": np.tril(rng.uniform(0.2, 1, (tokens, tokens))).astype(np.float32),
            "axis": np.array([1], np.int64),
        },
        [TensorSpec(name="input_ids", dtype="int64", shape=("batch", tokens))],
        [
            TensorSpec(name="last_hidden_state", dtype="float32", shape=("batch", tokens, width)),
            TensorSpec(name=SKIPPED_STATES, dtype="float32", shape=("batch", SKIPS, tokens, width)),
        ],
    )
