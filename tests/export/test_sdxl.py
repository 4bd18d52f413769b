"""SDXL checkpoints: which are read, with what words the others are refused, and what is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Engine
from engine.bundle import SHALLOW_UNET
from export import export_checkpoint
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.hub import wanted
from tests.engine.pairs import make_request
from tests.export.checkpoints import EULER, FAMILIES, make_checkpoint

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for inpainting; not to be changed."""
    return make_checkpoint(tmp_path_factory.mktemp("sdxl"), family="sdxl")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_good_folder(made: Path) -> None:
    checkpoint = Checkpoint.open(made)
    assert list(checkpoint.text_encoders) == ["text_encoder", "text_encoder_2"]
    assert checkpoint.force_zeros_for_empty_prompt
    files = [file.relative_to(made).as_posix() for file in checkpoint.weights()]
    assert files[:2] == ["text_encoder/model.safetensors", "text_encoder_2/model.safetensors"]
    assert len(files) == 4


def test_the_hub_is_asked_for_all_of_it(made: Path) -> None:
    files = [file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()]
    beside = ["sd_xl_base_1.0.safetensors", "vae_1_0/config.json", "text_encoder_2/model.onnx"]
    assert sorted(wanted([*files, *beside])) == sorted(files)


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        (
            "model_index.json",
            {"requires_aesthetics_score": True, "text_encoder": [None, None]},
            r"requires_aesthetics_score is True and text_encoder is None: an SDXL refiner; "
            r"supported: SDXL base and inpainting checkpoints",
        ),
        ("model_index.json", {"text_encoder": [None, None]}, "an SDXL refiner; supported"),
        ("model_index.json", {"requires_aesthetics_score": True}, "an SDXL refiner; supported"),
        (
            "model_index.json",
            {"text_encoder_2": ["transformers", "T5EncoderModel"]},
            "text_encoder_2 is 'T5EncoderModel'; supported: CLIPTextModelWithProjection",
        ),
        (
            "model_index.json",
            {"force_zeros_for_empty_prompt": "yes"},
            "force_zeros_for_empty_prompt is 'yes'; true or false is needed",
        ),
        (
            "unet/config.json",
            {"addition_embed_type": None},
            "addition_embed_type is None; supported with two text encoders: 'text_time'",
        ),
        (
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 64},
            "projection_class_embeddings_input_dim is 64; supported: 24 of the pooled text and 6 "
            "times addition_time_embed_dim, 8",
        ),
        (
            "unet/config.json",
            {"addition_time_embed_dim": None},
            "addition_time_embed_dim is None; a whole number from 1",
        ),
        (
            "unet/config.json",
            {"cross_attention_dim": 48},
            r"hidden_size is 48 \+ 32, but the UNet's cross_attention_dim is 48",
        ),
        (
            "text_encoder_2/config.json",
            {"projection_dim": "wide"},
            r"text_encoder_2/config\.json: projection_dim is 'wide'; a whole number",
        ),
        (
            "text_encoder_2/config.json",
            {"model_type": "t5"},
            r"text_encoder_2/config\.json: model_type is 't5'; supported: clip_text_model",
        ),
        (
            "vae/config.json",
            {"latents_mean": [0.1, 0.2, 0.3, 0.4]},
            r"latents_mean is \[0.1, 0.2, 0.3, 0.4\]; only null is supported",
        ),
    ],
)
def test_others_are_refused_by_name(
    folder: Path, file: str, entries: dict[str, Any], message: str
) -> None:
    change(folder / file, **entries)
    with pytest.raises(ExportError, match=message):
        Checkpoint.open(folder)


def test_a_missing_second_text_encoder(folder: Path) -> None:
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"text_encoder_2: holds no weights; expected model"):
        Checkpoint.open(folder)


def test_tokenizers_of_different_lengths(folder: Path, tmp_path: Path) -> None:
    from export.tokenizer import write_tokenizers

    change(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=24)
    message = "model_max_length differs: tokenizer's is 77, tokenizer_2's is 24; one length"
    with pytest.raises(ExportError, match=message):
        write_tokenizers(Checkpoint.open(folder), tmp_path)


def test_no_layers_are_left_out(made: Path, tmp_path: Path) -> None:
    message = "clip_skip is 1; a checkpoint with two text encoders allows none"
    with pytest.raises(ExportError, match=message):
        export_checkpoint(made, tmp_path / "bundle", clip_skip=1)


def test_the_scheduler_is_taken_as_it_is(tmp_path: Path) -> None:
    """Stable Diffusion's pipelines correct ``steps_offset``; SDXL's do not."""
    from export.defaults import scheduler_config

    for family, offset in (("sdxl", 0), ("sd1", 1)):
        scheduler = FAMILIES[family].scheduler | {"steps_offset": 0}
        folder = make_checkpoint(tmp_path / family, family=family, scheduler=scheduler)
        assert scheduler_config(Checkpoint.open(folder))["steps_offset"] == offset


def test_deep_features_are_kept_and_pictures_are_made(made: Path, tmp_path: Path) -> None:
    """With a UNet in two parts, of which each is told everything."""
    bundle = export_checkpoint(made, tmp_path / "bundle", deep_cache=0)
    names = [spec.name for spec in bundle.components[SHALLOW_UNET].inputs]
    assert names[2:] == ["encoder_hidden_states", "text_embeds", "time_ids", "deep_feature"]
    assert bundle.scheduler == EULER
    with Engine.open(bundle.path, threads=1) as engine:
        whole, saved = (
            engine.inpaint(make_request(guidance_scale=5.0, deep_cache_interval=interval))
            for interval in (1, 2)
        )
    assert whole.latents is not None
    assert saved.latents is not None
    assert 0.001 < np.abs(whole.latents - saved.latents).max() < 5
