"""The tiny checkpoints are fit for tests: the same every time, and sensitive to their inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.export.checkpoints import make_checkpoint
from tests.export.conftest import VARIANTS
from tests.export.originals import normal, original

pytest.importorskip("torch")
pytestmark = pytest.mark.export


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_are_of_order_one_and_depend_on_prompt_and_timestep(
    variant: str, checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint(variant)
    tokens = VARIANTS[variant].get("max_length", 77)
    ids = np.full((2, tokens), 615)
    ids[0, :4], ids[1, :6] = (614, 320, 524, 574), (614, 1, 2, 3, 4, 5)
    text = original(folder, "text_encoder")(input_ids=ids)
    unet = original(folder, "unet")
    sample = normal(0, 1, VARIANTS[variant]["unet_channels"], 16, 16)

    def predict(row: int, timestep: float) -> np.ndarray:
        time = np.array([timestep], np.float32)
        return unet(sample=sample, timestep=time, encoder_hidden_states=text[row : row + 1])

    base = predict(0, 700)
    assert 0.5 < base.std() < 2
    assert (predict(1, 700) - base).std() > 0.03
    assert (predict(0, 300) - base).std() > 0.03
    image = original(folder, "vae_decoder")(latents=normal(1, 1, 4, 16, 16))
    assert 0.1 < image.std() < 1
    latents = original(folder, "vae_encoder")(image=np.tanh(normal(2, 1, 3, 64, 64)))
    assert 0.3 < latents[:, :4].std() < 4


def test_the_same_arguments_give_the_same_bytes(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    again = make_checkpoint(tmp_path, **VARIANTS["inpaint_tiny"])
    for file in sorted(again.rglob("*.*")):
        other = checkpoint("inpaint_tiny") / file.relative_to(again)
        assert file.read_bytes() == other.read_bytes(), file.name
