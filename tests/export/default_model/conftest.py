"""Fixtures of the training recipe; torch is imported when a test asks for one of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.default_model.vocabulary import NOUNS
    from tests.export.default_model.tiny import write_shard

    folder = tmp_path_factory.mktemp("shards")
    labels = [label for noun in NOUNS for label in noun.labels]
    rows = [
        {"file": f"objects/{i}.png", "label": label.title(), "set": "fluent-emoji-3d"}
        for i, label in enumerate([*labels, *["unnamed thing"] * 16])
    ]
    write_shard(folder, "objects", rows, 16)
    write_shard(folder, "photos", [{"file": f"photos/{i}.png"} for i in range(9)], 40)
    return folder


@pytest.fixture(scope="module")
def composer(shards: Path) -> Any:
    from export.default_model.compose import Composer, ComposeSettings
    from export.default_model.data import load_photos, load_sprites
    from tests.export.default_model.tiny import SIZE

    sprites = load_sprites(shards, side=SIZE)
    return Composer(sprites, load_photos(shards, short_side=48), ComposeSettings(size=SIZE))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import CLIPTokenizer

    from tests.export.default_model.tiny import MODEL

    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [*map(chr, range(33, 127))]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MODEL.tokens
    )


@pytest.fixture
def make_trainer(composer: Any, tokenizer: Any) -> Any:
    import torch

    from export.default_model.model import build_vae
    from export.default_model.trainer import Trainer
    from tests.export.default_model.tiny import SETTINGS

    def make(**changes: Any) -> Trainer:
        torch.manual_seed(0)
        return Trainer(
            replace(SETTINGS, **changes),
            composer=composer,
            vae=build_vae(16).eval().requires_grad_(False),
            tokenizer=tokenizer,
            device=torch.device("cpu"),
        )

    return make


@pytest.fixture(scope="module")
def init_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    import torch

    from export.default_model.model import (
        build_text_encoder,
        build_unet,
        build_vae,
        save_pipeline,
    )
    from tests.export.default_model.tiny import MODEL

    folder = tmp_path_factory.mktemp("init") / "checkpoint"
    torch.manual_seed(1)
    save_pipeline(
        folder,
        vae=build_vae(16),
        unet=build_unet(MODEL),
        text=build_text_encoder(MODEL, tokenizer),
        tokenizer=tokenizer,
    )
    return folder
