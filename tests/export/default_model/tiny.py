"""Tiny shards and settings for the tests of the training recipe."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from export.default_model.model import (
    ModelSettings,
)
from export.default_model.trainer import TrainSettings

SIZE = 32
MODEL = ModelSettings(size=SIZE, channels=(16, 32), text_width=32, text_layers=1)
SETTINGS = TrainSettings(model=MODEL, batch=4, pool=8, chunk=4, warmup=8, ema_half_life=40)


def write_shard(folder: Path, name: str, rows: list[dict[str, Any]], size: int) -> None:
    rng = np.random.default_rng(3)
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for row in rows:
            pixels = rng.integers(0, 256, (size, size, 4 if name == "objects" else 3), np.uint8)
            if name == "objects":
                pixels[..., 3] = 0
                pixels[2:-2, 4:-4, 3] = 255
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "png")
            info = tarfile.TarInfo(row["file"])
            info.size = stream.tell()
            stream.seek(0)
            tar.addfile(info, stream)
    (folder / f"{name}.json").write_text(json.dumps(rows))


def assert_same(a: Any, b: Any) -> None:
    """Equality of nested states, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b
