"""Whole exports of tiny checkpoints: what is in the bundle, and that it computes the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.bundle import Bundle
from engine.errors import BundleError
from export import ExportError, ParityError, export_checkpoint
from tests.export.conftest import VARIANTS
from tests.export.originals import TOLERANCE, normal, original, session

pytest.importorskip("torch")
pytestmark = pytest.mark.export

Get = Callable[[str], Path]
GetBundle = Callable[[str], Bundle]

PLANES = [(1, 8, 8), (2, 9, 13), (3, 31, 8), (1, 32, 33)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_bundle_opens_with_what_the_checkpoint_says(
    variant: str, checkpoint: Get, exported: GetBundle
) -> None:
    made = exported(variant)
    bundle = Bundle.open(made.path)
    settings = VARIANTS[variant]
    tiny = settings["vae"] == "tiny"
    tokens = settings.get("max_length", 77)
    assert (bundle.family, bundle.target, bundle.precision) == ("sd1", "cpu", "fp32")
    assert bundle.unet_channels == settings["unet_channels"]
    assert bundle.components["text_encoder"].inputs[0].shape == ("batch", tokens)
    gives = bundle.components["vae_encoder"].outputs[0]
    assert (gives.name, gives.shape[1]) == (("latents", 4) if tiny else ("moments", 8))
    assert bundle.latents.scaling_factor == (0.9 if tiny else 0.5)
    assert len(bundle.latents.rgb_factors) == 5
    assert bundle.scheduler["_class_name"] == "DDIMScheduler"
    assert bundle.defaults.scheduler == "ddim"
    assert (bundle.defaults.size, bundle.defaults.max_size) == (64, 64)
    for component in bundle.components.values():
        assert component.parity is not None
        assert component.parity.psnr_db > 100
    assert bundle.provenance["source"] == variant
    assert len(bundle.provenance["weights_sha256"]) == 64


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("plane", PLANES)
def test_unet_equals_torch_at_any_size_with_a_timestep_per_row(
    variant: str, plane: tuple[int, int, int], checkpoint: Get, exported: GetBundle
) -> None:
    batch, height, width = plane
    channels = VARIANTS[variant]["unet_channels"]
    inputs = {
        "sample": normal(1, batch, channels, height, width),
        "timestep": np.linspace(999, 20.5, batch, dtype=np.float32),
        "encoder_hidden_states": normal(2, batch, 5 + height, 48),
    }
    expected = original(checkpoint(variant), "unet")(**inputs)
    found = session(exported(variant), "unet")(**inputs)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_a_row_does_not_depend_on_its_company(exported: GetBundle) -> None:
    unet = session(exported("inpaint_kl"), "unet")
    together = {
        "sample": normal(1, 3, 9, 11, 8),
        "timestep": np.array([1.0, 500.25, 999.0], np.float32),
        "encoder_hidden_states": normal(2, 3, 77, 48),
    }
    all_rows = unet(**together)
    for row in range(3):
        alone = unet(**{name: values[row : row + 1] for name, values in together.items()})
        np.testing.assert_allclose(alone[0], all_rows[row], atol=TOLERANCE, rtol=0)
    assert np.abs(all_rows[0] - all_rows[1]).max() > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_encoder_and_vae_equal_torch(
    variant: str, checkpoint: Get, exported: GetBundle
) -> None:
    tokens = VARIANTS[variant].get("max_length", 77)
    ids = np.random.default_rng(0).integers(0, 600, (3, tokens))
    cases = [("text_encoder", {"input_ids": ids})]
    for batch, height, width in PLANES:
        latents, image = (
            normal(3, batch, 4, height, width),
            normal(4, batch, 3, 8 * height, 8 * width),
        )
        cases += [("vae_decoder", {"latents": latents}), ("vae_encoder", {"image": image})]
    originals = {name: original(checkpoint(variant), name) for name, _ in cases[:3]}
    sessions = {name: session(exported(variant), name) for name in originals}
    for name, inputs in cases:
        expected, found = originals[name](**inputs), sessions[name](**inputs)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0, err_msg=name)


def test_progress_overrides_documents_and_overwriting(
    checkpoint: Get, exported: GetBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "NOTES.md"
    notes.write_text("free to use\n")
    output = tmp_path / "out" / "bundle"
    output.mkdir(parents=True)
    stages: list[tuple[str, int, int]] = []

    def export(**settings: object) -> Bundle:
        return export_checkpoint(
            checkpoint("inpaint_tiny"),
            output,
            progress=lambda *stage: stages.append(stage),
            num_inference_steps=3,
            guidance_scale=2,
            size=128,
            scheduler="lcm",
            licence={"id": "CC0-1.0"},
            documents=[notes],
            overwrite=True,
        )

    bundle = export()
    assert stages[0] == ("checkpoint", 0, 12)
    assert stages[-1] == ("done", 12, 12)
    assert [index for _, index, _ in stages] == list(range(13))
    assert bundle.defaults.num_inference_steps == 3
    assert (bundle.defaults.size, bundle.defaults.max_size) == (128, 192)
    assert bundle.defaults.scheduler == "lcm"
    assert bundle.licence["id"] == "CC0-1.0"
    assert (output / "NOTES.md").read_text() == "free to use\n"
    # The same checkpoint gives the same bytes.
    for name, component in exported("inpaint_tiny").components.items():
        assert bundle.components[name].model.sha256 == component.model.sha256, name

    before = (output / "bundle.json").read_bytes()
    monkeypatch.setattr("export.parity.MIN_PSNR_DB", 1000.0)
    with pytest.raises(ParityError, match=r"text_encoder: differs .* \(limit 1000 dB\)"):
        export()
    assert (output / "bundle.json").read_bytes() == before
    assert [entry.name for entry in output.parent.iterdir()] == ["bundle"]


def test_a_failed_export_leaves_nothing(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.parity.MAX_ABS_ERROR", -1.0)
    with pytest.raises(ParityError):
        export_checkpoint(checkpoint("inpaint_tiny"), tmp_path / "deep" / "bundle")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "cuda"}, "target is 'cuda'; allowed: cpu"),
        ({"precision": "int4"}, "precision is 'int4'; allowed: fp32, fp16, int8"),
        ({"scheduler": "magic"}, "scheduler is 'magic'; allowed: ddim, ddpm, euler"),
        ({"size": 100}, "size is 100; a multiple of 8"),
        ({"revision": "main"}, "a revision belongs to a name on the hub"),
    ],
)
def test_what_does_not_exist_is_refused(
    settings: dict[str, str], message: str, checkpoint: Get, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export_checkpoint(checkpoint("plain_kl"), tmp_path / "bundle", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("betas", [["a"], [0.1, 0.2], "x", 5])
def test_what_the_engine_refuses_is_an_export_error(
    betas: object, checkpoint: Get, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("plain_kl"), tmp_path / "copy"))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trained_betas": betas}))
    with pytest.raises(ExportError, match=r"^scheduler_config\.json: .*trained_betas"):
        export_checkpoint(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_the_engine_would_not_open_is_an_export_error(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Bundle) -> None:
        raise BundleError(f"{self.path}: is not good")

    monkeypatch.setattr(Bundle, "write", refused)
    output = tmp_path / "bundle"
    with pytest.raises(ExportError) as caught:
        export_checkpoint(checkpoint("inpaint_tiny"), output)
    assert str(caught.value) == (f"{output}: would be no bundle that the engine opens: is not good")
    assert list(tmp_path.iterdir()) == []


def test_manifest_names_nothing_of_this_machine(exported: GetBundle) -> None:
    for variant in VARIANTS:
        folder = exported(variant).path
        assert str(folder.parent) not in json.dumps((folder / "bundle.json").read_text())
        for file in folder.iterdir():
            assert b"site-packages" not in file.read_bytes(), file.name
