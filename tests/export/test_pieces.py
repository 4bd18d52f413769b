"""The small parts: the output folder, defaults, licences, previews, the public face."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export
from engine.bundle import Bundle
from export.checkpoint import Checkpoint
from export.default_bundle import DOCUMENT, MAX_SIZE, OUTPUT, SIZE, licence_notes
from export.defaults import defaults, family, scheduler_config, scheduler_name
from export.errors import ExportError
from export.licence import copy_documents, read_licence, texts
from export.output import staged
from export.preview import PICTURES, fit_rgb_factors, pictures

pytestmark = pytest.mark.export


def a_checkpoint(**entries: Any) -> Checkpoint:
    values = {name: {} for name in ("variant", "text_encoder", "unet", "vae", "scheduler")}
    return Checkpoint(folder=Path(), source="", revision=None, pipeline="", **{**values, **entries})


def test_public_face() -> None:
    assert export.__all__ == ["ExportError", "ParityError", "Progress", "export_checkpoint"]
    code = (
        "import sys, export; print([m for m in ('torch', 'onnx', 'diffusers') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "bundle"

    def interrupted() -> None:
        with staged(output) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with staged(output) as folder:
        (folder / "bundle.json").write_text('{"tokenizer": {"file": "t.json"}}')
        (folder / "t.json").write_text("1")
        assert not output.exists()
    assert sorted(entry.name for entry in output.iterdir()) == ["bundle.json", "t.json"]

    with pytest.raises(ExportError, match="holds a bundle already"), staged(output):
        pass
    with staged(output, overwrite=True) as folder:
        (folder / "bundle.json").write_text("{}")
    assert [entry.name for entry in output.iterdir()] == ["bundle.json"]
    assert list(tmp_path.iterdir()) == [output]

    (output / "diary.txt").touch()
    with (
        pytest.raises(ExportError, match=r"diary\.txt is no part of the bundle"),
        staged(output, overwrite=True),
    ):
        pass
    (output / "bundle.json").unlink()
    with pytest.raises(ExportError, match="holds other files"), staged(output, overwrite=True):
        pass
    with pytest.raises(ExportError, match="is not a folder"), staged(output / "diary.txt"):
        pass


def test_nothing_is_written_into_a_bundle(tmp_path: Path) -> None:
    bundle, beside = tmp_path / "bundle", tmp_path / "beside"
    bundle.mkdir()
    (bundle / "bundle.json").write_text("{}")
    (tmp_path / "link").symlink_to(bundle)
    for output in (bundle / "sub", bundle / "deep" / "sub", tmp_path / "link" / "sub"):
        with (
            pytest.raises(ExportError, match=rf"lies in the bundle {bundle}; name a folder"),
            staged(output, overwrite=True),
        ):
            pass
    assert [entry.name for entry in bundle.iterdir()] == ["bundle.json"]
    with staged(bundle / ".." / "beside") as folder:
        (folder / "bundle.json").write_text("{}")
    assert beside.is_dir()


def test_names_of_outputs_may_be_long_and_not_too_long(tmp_path: Path) -> None:
    with staged(tmp_path / ("b" * 255)) as folder:
        (folder / "bundle.json").write_text("{}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["b" * 255]
    with (
        pytest.raises(ExportError, match="b: cannot be written: File name too long"),
        staged(tmp_path / ("b" * 256)),
    ):
        pass
    (tmp_path / "circle").symlink_to("circle")
    with (
        pytest.raises(ExportError, match="circle/b: cannot be written"),
        staged(tmp_path / "circle" / "b"),
    ):
        pass


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "PNDMScheduler"}, "pndm"),
        ({"_class_name": "DDIMScheduler"}, "ddim"),
        ({"_class_name": "EulerDiscreteScheduler"}, "euler"),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_a"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "dpmpp_2m_karras",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "dpmpp_2m_sde",
        ),
        ({"_class_name": "UniPCMultistepScheduler"}, "unipc"),
        ({"_class_name": "LCMScheduler"}, "lcm"),
    ],
)
def test_scheduler_names(config: dict[str, Any], name: str) -> None:
    assert scheduler_name(config) == name


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
    ],
)
def test_other_schedulers_become_ddim_and_it_is_said(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="export.defaults"):
        assert scheduler_name(config) == "ddim"
    assert config["_class_name"] in caplog.text


def test_scheduler_config_is_the_one_that_the_pipeline_would_use() -> None:
    file = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012}
    assert scheduler_config(a_checkpoint(scheduler=file)) == {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "steps_offset": 1,
        "skip_prk_steps": True,
    }
    with pytest.raises(ExportError, match="prediction_type is 'flow'; supported: epsilon"):
        scheduler_config(a_checkpoint(scheduler={**file, "prediction_type": "flow"}))


def test_defaults_and_family() -> None:
    usual = defaults({"_class_name": "PNDMScheduler"}, 512)
    assert (usual.num_inference_steps, usual.guidance_scale) == (25, 7.5)
    assert (usual.size, usual.max_size, usual.scheduler) == (512, 768, "pndm")
    lcm = defaults({"_class_name": "LCMScheduler"}, 512)
    assert (lcm.num_inference_steps, lcm.guidance_scale) == (4, 1.0)
    assert defaults({"_class_name": "DDIMScheduler"}, 32).size == 64
    with pytest.raises(ExportError, match="max_size is 256, below size 512"):
        defaults({"_class_name": "DDIMScheduler"}, 512, max_size=256)
    assert family(a_checkpoint(unet={"cross_attention_dim": 768})) == "sd1"
    assert family(a_checkpoint(unet={"cross_attention_dim": 1024})) == "sd2"


def test_licence_of_a_checkpoint(tmp_path: Path) -> None:
    assert read_licence(tmp_path, None) == {}
    (tmp_path / "LICENSE").write_text("Be kind.")
    assert read_licence(tmp_path, None) == {"id": "see document", "source": "LICENSE"}
    readme = tmp_path / "README.md"
    readme.write_text("---\ntags:\n- x\nlicense: creativeml-openrail-m\n---\nlicense: no\n")
    found = {"id": "creativeml-openrail-m", "source": "README.md"}
    assert read_licence(tmp_path, None) == found
    readme.write_text("---\nlicense: other\nlicense_name: 'open rail'\n---\n")
    assert read_licence(tmp_path, None)["id"] == "open rail"
    assert read_licence(tmp_path, {"id": "MIT"}) == {"id": "MIT"}


def test_links_out_of_a_checkpoint_are_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("---\nlicense: secret\n---\n")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("LICENSE", "README.md"):
        (folder / name).symlink_to(secret)
    assert texts(folder) == []
    assert f"leads out of the checkpoint is left out: {folder / 'LICENSE'}" in caplog.text
    assert read_licence(folder, None) == {}
    (folder / "LICENSE.txt").write_text("Be kind.")
    (folder / "LICENSE.md").symlink_to("LICENSE.txt")
    assert texts(folder) == [folder / "LICENSE.md", folder / "LICENSE.txt"]


def test_the_hubs_cache_keeps_its_files_aside(tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    folder = cache / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "1").write_text("Be kind.")
    (cache / "other").write_text("secret")
    (folder / "LICENSE").symlink_to("../../blobs/1")
    (folder / "LICENSE.md").symlink_to("../../other")
    assert texts(folder) == [folder / "LICENSE"]


def test_documents_cannot_take_the_place_of_the_bundles_files(tmp_path: Path) -> None:
    bundle, source = tmp_path / "bundle", tmp_path / "source"
    bundle.mkdir()
    source.mkdir()
    for name in ("NOTICE", "unet.onnx", "bundle.json", "tokenizer.json"):
        (source / name).write_text("x")
    (record,) = copy_documents([source / "NOTICE"], bundle)
    assert (record.file, record.size) == ("NOTICE", 1)
    for name in ("NOTICE", "unet.onnx", "bundle.json", "tokenizer.json"):
        with pytest.raises(ExportError, match="a bundle cannot hold a second"):
            copy_documents([source / name], bundle)
    with pytest.raises(ExportError, match="cannot be copied: No such file"):
        copy_documents([source / "absent"], bundle)


def test_preview_finds_a_linear_map() -> None:
    mixing = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.3, 0.8], [0.5, -0.5, 0.2]])

    def encode(images: np.ndarray) -> np.ndarray:
        cells = images.reshape(len(images), 3, 16, 8, 16, 8).mean((3, 5))
        latents = np.einsum("ck,bkhw->bchw", mixing, cells) / 0.5
        return np.concatenate([latents, latents * 0 - 7], axis=1).astype(np.float32)

    factors = np.array(fit_rgb_factors(encode, channels=4, scaling_factor=0.5))
    assert factors.shape == (5, 3)
    found = np.einsum("bchw,ck->bkhw", encode(pictures())[:, :4] * 0.5, factors[:4])
    found += factors[4][:, None, None]
    cells = pictures().reshape(PICTURES, 3, 16, 8, 16, 8).mean((3, 5))
    np.testing.assert_allclose(found, cells, atol=1e-3)
    assert np.abs(pictures()).max() <= 1
    np.testing.assert_array_equal(pictures(), pictures())


def test_the_bundle_that_ships() -> None:
    bundle = Bundle.open(OUTPUT)
    assert (bundle.defaults.size, bundle.defaults.max_size) == (SIZE, MAX_SIZE)
    assert (bundle.defaults.num_inference_steps, bundle.defaults.guidance_scale) == (8, 3.0)
    assert bundle.licence == {"id": "Apache-2.0", "source": DOCUMENT}
    assert [record.file for record in bundle.documents] == [DOCUMENT]
    assert sum(record.size for record in bundle.files()) < 30_000_000
    # Its latents were trained to hold the colours, so that the preview is nearly a picture.
    assert np.diag(np.array(bundle.latents.rgb_factors)[:3]).min() > 0.3


def test_licence_notes_credit_the_photographs(tmp_path: Path) -> None:
    photos = [
        {"file": "photos/opencv__home.webp", "licence": "Apache-2.0"},
        {"file": "photos/lomiri__red_sea_by_Ann_Other.webp", "licence": "see elsewhere"},
        {"file": "photos/x__dam.webp", "licence": "CC-BY-2.0", "author": "D", "source": "at"},
    ]
    (tmp_path / "photos.json").write_text(json.dumps(photos))
    notes = licence_notes(tmp_path / "photos.json")
    assert '- "red sea", Ann Other, CC-BY-4.0, lomiri-wallpapers\n' in notes
    assert '- "dam", D, CC-BY-2.0, at\n' in notes
    assert '"home"' not in notes
    assert "Fluent Emoji (c) Microsoft Corporation, MIT" in notes
