"""Single files in the original layout: the same bundle as that of the folder; what is refused."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import ExportError, export_checkpoint
from export import original_names as names
from export.clip_vocabulary import LIST, write_clip_tokenizer
from tests.export.original_layout import make_folder, original_state, unet_name, vae_name

pytest.importorskip("torch")
pytestmark = pytest.mark.export

KINDS: dict[str, dict[str, Any]] = {
    "first": {"channels": 4},
    "first_inpaint": {"channels": 9},
    "second": {"channels": 4, "second": True},
    "second_inpaint": {"channels": 9, "second": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_folder(tmp_path_factory.mktemp("folder") / kind, **KINDS[kind])
        return made[kind]

    return get


def write(path: Path, state: dict[str, Any], **metadata: str) -> Path:
    from safetensors.torch import save_file

    save_file(state, path, metadata={"format": "pt", **metadata})
    return path


def weights(folder: Path, name: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [False, True])
def test_every_weight_comes_back(
    kind: str, half: bool, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch
    from diffusers.loaders import single_file_utils

    from export.original import Original

    state = original_state(folder(kind))
    if half:
        state = {name: value.half() for name, value in state.items()}
        # Some files have the autoencoder's attention as plain matrices.
        state = {
            name: value.flatten(1) if ".attn_1." in name and value.ndim > 1 else value
            for name, value in state.items()
        }
    file = write(tmp_path / "model.safetensors", state)
    found = Original.open(file).write(
        tmp_path / "laid-out", prediction_type="epsilon", tokenizer=folder(kind) / "tokenizer"
    )
    for name in ("text_encoder", "unet", "vae"):
        expected, laid_out = weights(folder(kind), name), weights(found, name)
        assert set(laid_out) == set(expected)
        for key, value in expected.items():
            assert torch.equal(laid_out[key], value.half() if half else value), key
    # diffusers' own rules agree.
    for name, convert in (
        ("unet", single_file_utils.convert_ldm_unet_checkpoint),
        ("vae", single_file_utils.convert_ldm_vae_checkpoint),
    ):
        config = json.loads((found / name / "config.json").read_text())
        theirs, ours = convert(dict(state), config), weights(found, name)
        assert set(theirs) == set(ours)
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        kept = (folder(kind) / "tokenizer" / name).read_text()
        made = (found / "tokenizer" / name).read_text()
        assert made == kept or json.loads(made) == json.loads(kept), name


def test_names_of_the_full_networks() -> None:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    for name in unet.state_dict():
        assert names.unet_name(unet_name(name), layers=2) == name
    layers = {
        name.removesuffix(".weight") for name in unet.state_dict() if name.endswith(".weight")
    }
    found = names.original_layers(layers)
    assert set(found.values()) == layers
    for old, layer in found.items():
        assert names.unet_name(f"{old}.weight", layers=2) == f"{layer}.weight"
        assert unet_name(f"{layer}.weight").split(".")[:2] == f"{old}.weight".split(".")[:2]
    for name in vae.state_dict():
        assert names.vae_name(vae_name(name), levels=4) == name


def test_the_file_gives_the_bundle_that_the_folder_gives(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    kind = "second_inpaint"
    file = write(tmp_path / "model.safetensors", original_state(folder(kind)))
    of_folder = export_checkpoint(folder(kind), tmp_path / "a")
    of_file = export_checkpoint(file, tmp_path / "b", clip_tokenizer=folder(kind) / "tokenizer")
    for name, component in of_folder.components.items():
        assert of_file.components[name].model == component.model, name
    assert of_file.tokenizer == of_folder.tokenizer
    assert of_file.defaults == of_folder.defaults
    assert of_file.latents == of_folder.latents
    for name in ("_class_name", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        assert of_file.scheduler[name] == of_folder.scheduler[name]
    assert of_file.provenance["source"] == "model.safetensors"
    assert len(of_file.provenance["file_sha256"]) == 64
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "model.safetensors"]


@pytest.mark.parametrize(
    ("kind", "given", "metadata", "expected"),
    [
        ("first", None, {}, "epsilon"),
        ("first", "v_prediction", {}, "v_prediction"),
        ("second_inpaint", None, {}, "epsilon"),
        ("second", "v_prediction", {}, "v_prediction"),
        ("second", None, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("second", "epsilon", {"modelspec.prediction_type": "v"}, "epsilon"),
        ("second", None, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
    ],
)
def test_prediction_type(
    kind: str,
    given: str | None,
    metadata: dict[str, str],
    expected: str,
    folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    from export.original import Original

    file = write(tmp_path / "m.safetensors", original_state(folder(kind)), **metadata)
    found = Original.open(file).write(
        tmp_path / "d", prediction_type=given, tokenizer=folder(kind) / "tokenizer"
    )
    scheduler = json.loads((found / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == expected
    size = json.loads((found / "unet" / "config.json").read_text())["sample_size"]
    assert size == (96 if kind == "second" and expected == "v_prediction" else 64)


def without(state: dict[str, Any], start: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith(start)}


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("second", lambda s, t: s, r"--prediction-type\) is epsilon for .* 512 pixels, v_pred"),
        ("first", lambda s, t: without(s, "first_stage_model."), r"holds no autoencoder .*--vae"),
        ("first", lambda s, t: without(s, "cond_stage"), r"holds no cond_stage_model\.transf"),
        ("first", lambda s, t: without(s, UNET), r"holds no model\.diffusion_model\."),
        ("first", lambda s, t: s | {f"{UNET}out.9.weight": t}, r"out\.9\.weight is no weight of"),
        ("first", lambda s, t: s | {"lora_unet_x.alpha": t}, "is a LoRA, which --lora fuses"),
        ("first", lambda s, t: s | {f"{UNET}label_emb.0.0.weight": t}, "class embeddings"),
        ("first", lambda s, t: {"conditioner.embedders.0.x": t}, "is Stable Diffusion XL; single"),
        ("first", lambda s, t: {"down_blocks.0.x": t}, "is a UNet in diffusers' layout"),
        ("first", lambda s, t: s | {f"{UNET}out.2.bias": t.int()}, "is of type I32; supported: F"),
        (
            "first",
            lambda s, t: s | {f"{UNET}input_blocks.0.0.weight": t.expand(32, 8, 3, 3).clone()},
            "takes 8 channels; 4 .plain. and 9 .inpainting. are",
        ),
        (
            "first",
            lambda s, t: without(s, f"{UNET}input_blocks.1.0.in_layers.2.weight"),
            r"m\.safetensors: the weight that diffusers calls down_blocks\.0\.resnets\.0\.conv1",
        ),
        (
            "first",
            lambda s, t: without(s, f"{UNET}middle_block.1.norm.bias"),
            r"m\.safetensors/unet: 1 of the weights .* are missing, first mid_block\.attent",
        ),
    ],
)
def test_what_is_no_such_checkpoint(
    kind: str,
    change: Callable[[dict[str, Any], Any], dict[str, Any]],
    message: str,
    folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    import torch

    state = change(original_state(folder(kind)), torch.zeros(1))
    file = write(tmp_path / "m.safetensors", state)
    with pytest.raises(ExportError, match=message) as caught:
        export_checkpoint(file, tmp_path / "bundle", clip_tokenizer=folder(kind) / "tokenizer")
    assert "partial" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]


def test_files_that_are_not_read(folder: Callable[[str], Path], tmp_path: Path) -> None:
    cases = {"m.ckpt": r"is a pickle, .* only \.safetensors", "m.safetensors": "is no whole .safe"}
    for name, message in cases.items():
        (tmp_path / name).write_bytes(b"\x80\x02")
        with pytest.raises(ExportError, match=message):
            export_checkpoint(tmp_path / name, tmp_path / "bundle")
    for settings in ({"prediction_type": "epsilon"}, {"clip_tokenizer": tmp_path}):
        with pytest.raises(ExportError, match="belongs to a single file, .* is none"):
            export_checkpoint(folder("first"), tmp_path / "bundle", **settings)
    file = write(tmp_path / "m.safetensors", original_state(folder("first")))
    with pytest.raises(ExportError, match="prediction_type is 'x'; allowed: epsilon, v_pred"):
        export_checkpoint(file, tmp_path / "bundle", prediction_type="x")


def test_tokenizer_from_openais_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPTokenizerFast

    merges = ["c a", "ca t</w>", "a t</w>"]
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 300)]]
    pairs = (f"{a} {b}" for a in letters for b in letters if f"{a} {b}" not in merges)
    filler = itertools.islice(pairs, 49152 - 256 - 2 - len(merges))
    text = "\n".join(["heading", *merges, *filler, "cut off"])
    package = tmp_path / "clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('is never run')")
    (package / LIST).write_bytes(gzip.compress(text.encode(), 1))
    monkeypatch.setattr("export.clip_vocabulary.PACKAGES", ("clip_of_no_such_name",))
    with pytest.raises(
        ExportError, match=r"none of clip_of_.*\(--tokenizer\), or install the list"
    ):
        write_clip_tokenizer(None, tmp_path / "t", length=77, second=False)
    monkeypatch.setattr("export.clip_vocabulary.PACKAGES", ("clip",))
    monkeypatch.syspath_prepend(tmp_path)
    for second, pad in ((False, 49407), (True, 0)):
        write_clip_tokenizer(None, tmp_path / "t", length=9, second=second)
        tokenizer = CLIPTokenizerFast.from_pretrained(tmp_path / "t")
        ids = tokenizer("Cat at", padding="max_length").input_ids
        # 512 bytes and bytes at a word's end, then the merges in their order.
        assert ids == [49406, 513, 514, 49407, *[pad] * 5]
        assert len(tokenizer) == 49408
    (package / LIST).write_bytes(gzip.compress(b"heading\na b"))
    with pytest.raises(ExportError, match="is not OpenAI's list of 48894 merges; name a diffusers"):
        write_clip_tokenizer(package / LIST, tmp_path / "t", length=9, second=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"empty: holds no vocab\.json; name a diffusers"):
        write_clip_tokenizer(tmp_path / "empty", tmp_path / "t", length=9, second=False)
