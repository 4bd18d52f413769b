"""Another autoencoder in place of the checkpoint's, from a folder and from a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import ExportError, export_checkpoint
from export.exporter import find_checkpoint
from tests.export.checkpoints import make_checkpoint
from tests.export.original_layout import make_folder, original_state
from tests.export.originals import TOLERANCE, normal, original, session

pytest.importorskip("torch")
pytestmark = pytest.mark.export

Get = Callable[[str], Path]


def test_bundle_with_another_vae(checkpoint: Get, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=9)
    config = other / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.25}))
    bundle = export_checkpoint(checkpoint("inpaint_kl"), tmp_path / "b", vae=other / "vae")
    assert bundle.latents.scaling_factor == 0.25
    assert bundle.provenance["vae"]["name"] == "vae"
    assert len(bundle.provenance["vae"]["weights_sha256"]) == 64
    cases: dict[str, dict[str, Any]] = {
        "vae_decoder": {"latents": normal(1, 1, 4, 9, 8)},
        "vae_encoder": {"image": normal(2, 1, 3, 72, 64)},
    }
    for name, inputs in cases.items():
        found = session(bundle, name)(**inputs)
        np.testing.assert_allclose(found, original(other, name)(**inputs), atol=TOLERANCE, rtol=0)
        own = original(checkpoint("inpaint_kl"), name)(**inputs)
        assert np.abs(found - own).max() > 0.1


@pytest.mark.parametrize("alone", [False, True])
def test_vae_of_a_single_file(alone: bool, checkpoint: Get, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from export import networks

    source = make_folder(tmp_path / "source")
    start = "first_stage_model."
    tensors = original_state(source)
    if alone:
        tensors = {
            name.removeprefix(start): value
            for name, value in tensors.items()
            if name.startswith(start)
        } | {"loss.logvar": torch.zeros(1)}
    save_file(tensors, tmp_path / "vae.safetensors")
    found = find_checkpoint(checkpoint("plain_kl"), work=tmp_path, vae=tmp_path / "vae.safetensors")
    assert found.scaling_factor == 0.18215
    held = networks.vae_decoder(found).module.state_dict()
    expected = load_file(source / "vae" / "diffusion_pytorch_model.safetensors")
    compared = 0
    for name, value in held.items():
        for known in expected:
            if f".{name}".endswith(f".{known}"):
                assert torch.equal(value, expected[known]), name
                compared += 1
    assert compared > 60


def test_single_file_without_its_own(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = make_folder(tmp_path / "source")
    tensors = {
        name: value
        for name, value in original_state(source).items()
        if not name.startswith("first_stage_model.")
    }
    save_file(tensors, tmp_path / "m.safetensors")
    found = find_checkpoint(
        tmp_path / "m.safetensors",
        work=tmp_path,
        clip_tokenizer=source / "tokenizer",
        vae=source / "vae",
    )
    assert found.weights("vae") == [source / "vae" / "diffusion_pytorch_model.safetensors"]
    assert len(found.digest()) == 64


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"latent_channels": 16},
            r"unet/config\.json: in_channels is 9; with 16 .*; the autoencoder is .*/other$",
        ),
        ({"_class_name": "VQModel"}, r"other/config\.json: _class_name is 'VQModel'; supported"),
        ({"scaling_factor": "x"}, r"other/config\.json: scaling_factor is 'x'; a number above 0"),
        ({"block_out_channels": [8, 8]}, r"other/config\.json: one latent cell covers 2 pixels"),
    ],
)
def test_vaes_that_do_not_fit(
    entries: dict[str, Any], message: str, checkpoint: Get, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(checkpoint("plain_kl") / "vae", tmp_path / "other"))
    config = other / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | entries))
    with pytest.raises(ExportError, match=message):
        export_checkpoint(checkpoint("inpaint_kl"), tmp_path / "bundle", vae=other)


def test_what_is_no_vae(checkpoint: Get, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    diffusers_file = checkpoint("plain_kl") / "vae" / "diffusion_pytorch_model.safetensors"
    cases = {
        tmp_path / "absent": r"absent: is no folder; the folder of an autoencoder",
        tmp_path: "holds no weights; expected diffusion_pytorch_model",
        tmp_path / "x.safetensors": r"x\.safetensors: holds no autoencoder in the original layout",
        diffusers_file: r"is no weight of Stable Diffusion .* in the original layout",
    }
    for path, message in cases.items():
        with pytest.raises(ExportError, match=message):
            export_checkpoint(checkpoint("plain_kl"), tmp_path / "bundle", vae=path)
