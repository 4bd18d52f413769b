"""Which folders are read, and with what words the others are refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.exporter import find_checkpoint

pytest.importorskip("torch")
pytestmark = pytest.mark.export


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(checkpoint("inpaint_kl"), tmp_path / "copy"))


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_good_folder(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.source == "copy"
    assert checkpoint.vae_class == "AutoencoderKL"
    names = [file.relative_to(folder).as_posix() for file in checkpoint.weights()]
    assert names == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    digest = checkpoint.digest()
    change(folder / "unet" / "config.json", sample_size=16)
    assert Checkpoint.open(folder).digest() == digest
    with (folder / names[1]).open("ab") as stream:
        stream.write(b" ")
    assert Checkpoint.open(folder).digest() != digest


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusion3Pipeline"},
            "is a StableDiffusion3Pipeline; supported pipelines: StableDiffusionInpaintPipeline",
        ),
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLPipeline"},
            "text_encoder_2 is None; supported: CLIPTextModelWithProjection",
        ),
        (
            "model_index.json",
            {"unet": ["diffusers", "FluxTransformer2DModel"]},
            "unet is 'FluxTransformer2DModel'; supported: UNet2DConditionModel",
        ),
        (
            "model_index.json",
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "text_encoder is 'T5EncoderModel'; supported: CLIPTextModel",
        ),
        ("unet/config.json", {"in_channels": 8}, "in_channels is 8; with 4 latent channels 4 "),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256; only null"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "supported: null and 'text'"),
        ("unet/config.json", {"cross_attention_dim": 64}, "hidden_size is 48, but the UNet's"),
        ("vae/config.json", {"_class_name": "VQModel"}, "_class_name is 'VQModel'; supported"),
        ("vae/config.json", {"block_out_channels": [8, 8]}, "one latent cell covers 2 pixels"),
        ("text_encoder/config.json", {"model_type": "bert"}, "model_type is 'bert'; supported"),
        # Of any type at all.
        ("unet/config.json", {"in_channels": "9"}, "in_channels is '9'; a whole number from 1 is"),
        ("unet/config.json", {"sample_size": "64"}, "sample_size is '64'; a whole number from 1,"),
        ("unet/config.json", {"sample_size": []}, r"sample_size is \[\]; a whole number from 1,"),
        ("vae/config.json", {"block_out_channels": 4}, "block_out_channels is 4; a list of whole"),
        ("vae/config.json", {"num_encoder_blocks": 4}, "num_encoder_blocks is 4; a list of whole"),
        ("vae/config.json", {"latent_channels": None}, "latent_channels is None; a whole number"),
        ("vae/config.json", {"latent_channels": True}, "latent_channels is True; a whole number"),
        ("vae/config.json", {"scaling_factor": [1]}, r"scaling_factor is \[1\]; a number above 0"),
        ("vae/config.json", {"scaling_factor": float("inf")}, "scaling_factor is inf; a number"),
        ("text_encoder/config.json", {"vocab_size": "x"}, "vocab_size is 'x'; a whole number from"),
        (
            "text_encoder/config.json",
            {"max_position_embeddings": 0},
            r"text_encoder/config\.json: max_position_embeddings is 0; a whole number from 1",
        ),
    ],
)
def test_other_models_are_refused_by_name(
    folder: Path, file: str, entries: dict[str, Any], message: str
) -> None:
    change(folder / file, **entries)
    with pytest.raises(ExportError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
def test_pickled_weights_are_refused(folder: Path, suffix: str) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(suffix))
    with pytest.raises(ExportError, match=r"is a pickle, which can run code .* only \.safetensors"):
        Checkpoint.open(folder)
    weights.with_suffix(suffix).unlink()
    with pytest.raises(ExportError, match=r"holds no weights; expected diffusion_pytorch_model\."):
        Checkpoint.open(folder)


def test_fp16_variant_is_taken_when_there_is_no_other(folder: Path) -> None:
    plain = folder / "vae" / "diffusion_pytorch_model.safetensors"
    half = folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copyfile(plain, half)
    assert Checkpoint.open(folder).variant["vae"] is None
    plain.unlink()
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.variant["vae"], checkpoint.variant["unet"]) == ("fp16", None)

    from export import networks

    assert networks.vae_decoder(checkpoint).module is not None


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    """Both libraries would fill them with random numbers."""
    from safetensors.torch import load_file, save_file

    from export import networks

    for name, file, build in (
        ("unet", "diffusion_pytorch_model", networks.unet),
        ("text_encoder", "model", lambda found: networks.text_encoder(found, tokens=77)),
    ):
        path = folder / name / f"{file}.safetensors"
        tensors = load_file(path)
        save_file({k: v for k, v in tensors.items() if "norm1" not in k}, path, {"format": "pt"})
        with pytest.raises(ExportError, match=rf"{name}: \d+ of the weights .* first .*norm1"):
            build(Checkpoint.open(folder))


def test_text_encoder_of_transformers_5_is_the_same(folder: Path) -> None:
    """transformers 5 writes the weights without the prefix that 4 asks for."""
    import torch
    from safetensors.torch import load_file, save_file

    from export import networks

    path = folder / "text_encoder" / "model.safetensors"
    before = networks.text_encoder(Checkpoint.open(folder), tokens=77).module.state_dict()
    tensors = {k.removeprefix("text_model."): v for k, v in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    after = networks.text_encoder(Checkpoint.open(folder), tokens=77).module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize("length", [0, 5, -100])
def test_weights_cut_short_are_named(folder: Path, network: str, length: int) -> None:
    from export import networks

    checkpoint = Checkpoint.open(folder)
    (file,) = checkpoint.weights(network)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ExportError) as caught:
        networks.builders(checkpoint, tokens=77)
    assert str(caught.value).startswith(f"{file}: is no whole .safetensors file: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "first"),
    [
        ("unet", r"conv_in\.bias with \(1,\) for \(32,\)"),
        ("vae_decoder", r"decoder\.conv_in\.bias with \(1,\) for \(16,\)"),
        ("text_encoder", r"text_model\.embeddings\.position_embedding\.weight"),
    ],
)
def test_weights_of_another_shape_are_one_sentence(folder: Path, network: str, first: str) -> None:
    from safetensors.torch import load_file, save_file

    from export import networks

    checkpoint = Checkpoint.open(folder)
    (file,) = checkpoint.weights(network.removesuffix("_decoder"))
    tensors = {name: values[:1].clone() for name, values in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ExportError) as caught:
        networks.builders(checkpoint, tokens=77)[network]()
    said = str(caught.value)
    assert re.fullmatch(rf".*: \d+ of the weights that .* have another shape, first {first}", said)


def test_whatever_a_configuration_does_to_the_libraries_is_refused(folder: Path) -> None:
    from export import networks

    change(folder / "unet" / "config.json", norm_num_groups=0)
    with pytest.raises(ExportError, match=r"unet: cannot be loaded: integer modulo by zero"):
        networks.unet(Checkpoint.open(folder))


def test_more_text_positions_than_the_encoder_has(folder: Path) -> None:
    from export import networks

    with pytest.raises(ExportError, match="model_max_length is 78, but the text encoder has 77"):
        networks.text_encoder(Checkpoint.open(folder), tokens=78)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80")
    cases = {
        "model.ckpt": "is no folder; a diffusers folder is needed",
        "not/there/at all": "does not exist, and is no name on the hub",
        ".": "model_index.json: is missing; a diffusers folder",
    }
    for name, message in cases.items():
        with pytest.raises(ExportError, match=message):
            find_checkpoint(str(tmp_path / name))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ExportError, match="cannot be read as JSON"):
        find_checkpoint(tmp_path)
    with pytest.raises(ExportError, match="does not exist"):
        find_checkpoint(tmp_path / "absent")
    (tmp_path / "model_index.json").write_text("[" * 100_000)
    with pytest.raises(ExportError, match=r"model_index\.json: cannot be read as JSON: maximum"):
        find_checkpoint(tmp_path)
    (tmp_path / "model_index.json").unlink()
    os.mkfifo(tmp_path / "model_index.json")
    with pytest.raises(ExportError, match=r"model_index\.json: is not a plain file"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "./absent",
        "../absent",
        ".x/y",
        "a--b/c",
        "foo..bar/x",
        "~/x",
        "a/b.git",
        "a" * 97,
        "a" * 5000,
    ],
)
def test_names_that_the_hub_could_not_have(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r": does not exist, and is no name on the hub \(owner/"):
        find_checkpoint(name)
