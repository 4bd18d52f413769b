"""Tiny checkpoints and their bundles, made once per run and shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.bundle import Bundle
from tests.export.checkpoints import make_checkpoint

VARIANTS: dict[str, dict[str, Any]] = {
    "inpaint_kl": {"unet_channels": 9, "vae": "kl"},
    "inpaint_tiny": {
        "unet_channels": 9,
        "vae": "tiny",
        "max_length": 24,
        "pooled_text": True,
        "half": True,
        "seed": 1,
    },
    "plain_kl": {"unet_channels": 4, "vae": "kl", "seed": 2, "safety_checker": True},
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant's checkpoint; not to be changed."""
    torch = pytest.importorskip("torch")
    # Networks this small are no faster on many threads, and far slower on cores that are busy.
    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / variant
            made[variant] = make_checkpoint(folder, **VARIANTS[variant])
        return made[variant]

    return get


@pytest.fixture(scope="session")
def exported(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """The bundle of a variant; not to be changed."""
    from export import export_checkpoint

    made: dict[str, Bundle] = {}

    def get(variant: str) -> Bundle:
        if variant not in made:
            output = tmp_path_factory.mktemp("bundle") / variant
            made[variant] = export_checkpoint(checkpoint(variant), output)
        return made[variant]

    return get
