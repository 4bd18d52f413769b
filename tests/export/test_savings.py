"""The networks that requests save with: what they compute, against torch and diffusers."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Bundle, Engine, InpaintRequest
from engine.bundle import FAST_DECODER, SHALLOW_UNET
from export import ExportError, export_checkpoint
from tests.engine.pairs import LATENT_TOLERANCE, PICTURE_TOLERANCE, Pair, make_request
from tests.export.checkpoints import WIDTH, _autoencoder_tiny
from tests.export.originals import TOLERANCE, normal

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.export

onnxruntime = pytest.importorskip("onnxruntime")

Get = Callable[[str], Path]


def deep_module(unet: Any, branch: int) -> Any:
    """The module whose output meets the skip connection of a branch on the way up."""
    last = unet.up_blocks[-1]
    before = len(last.resnets) - 1 - branch
    if before == 0:
        return unet.up_blocks[-2]
    layers = getattr(last, "attentions", None) or last.resnets
    return layers[before - 1]


@contextmanager
def watched(module: Any, replace: Callable[[Any], Any]) -> Iterator[None]:
    """Let ``replace`` see a module's output tensor, and put its answer in place."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (replace(output[0]), *output[1:])
        return replace(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def kept_in(seen: list[Any]) -> Callable[[Any], Any]:
    """Keeps what it is given, and gives it back."""

    def keep(tensor: Any) -> Any:
        seen.append(tensor)
        return tensor

    return keep


def sd_shaped() -> Any:
    """Attention in the outermost blocks too, and two layers each, as in Stable Diffusion."""
    torch.manual_seed(6)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


@pytest.fixture(scope="module", params=["tiny", "sd"])
def traced(
    request: pytest.FixtureRequest, checkpoint: Get, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, Any]:
    """A UNet in torch, and the folder and entry of its graph."""
    from export import networks
    from export.checkpoint import Checkpoint
    from export.exporter import _export_network, _Stages

    source = Path(shutil.copytree(checkpoint("inpaint_kl"), tmp_path_factory.mktemp("unet") / "c"))
    if request.param == "sd":
        sd_shaped().save_pretrained(source / "unet")
    folder = tmp_path_factory.mktemp("graph")
    opened = Checkpoint.open(source)
    entry = _export_network("unet", lambda: networks.unet(opened), folder, _Stages(None))
    unet = diffusers.UNet2DConditionModel.from_pretrained(source / "unet").eval()
    return unet, folder, entry


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_both_parts_equal_torch_cut_at_the_same_place(
    traced: tuple[Any, Path, Any], branch: int, tmp_path: Path
) -> None:
    from export import deep_cache

    unet, source, entry = traced
    folder = Path(shutil.copytree(source, tmp_path / "split"))
    allowed = len(unet.up_blocks[-1].resnets) - 1
    if branch > allowed:
        with pytest.raises(ExportError, match=rf"is {branch}; allowed: 0 to {allowed}$"):
            deep_cache.split(folder, entry, branch=branch)
        return
    whole, outer = deep_cache.split(folder, entry, branch=branch)
    assert outer.parity is not None
    assert outer.parity.psnr_db > 100
    assert outer.model.size < whole.model.size
    for batch, height, width in ((1, 8, 8), (2, 9, 13)):
        inputs = {
            "sample": normal(1, batch, 9, height, width),
            "timestep": np.linspace(999, 20.5, batch, dtype=np.float32),
            "encoder_hidden_states": normal(2, batch, 7, WIDTH),
        }
        tensors = [torch.from_numpy(values) for values in inputs.values()]
        seen: list[Any] = []
        with torch.no_grad(), watched(deep_module(unet, branch), kept_in(seen)):
            prediction = unet(*tensors).sample.numpy()
        found, deep = run(folder / whole.model.file, inputs)
        np.testing.assert_allclose(found, prediction, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(deep, seen[0].numpy(), atol=TOLERANCE, rtol=0)
        other = normal(3, *deep.shape)
        with (
            torch.no_grad(),
            watched(deep_module(unet, branch), lambda x, other=other: torch.from_numpy(other)),
        ):
            replaced = unet(*tensors).sample.numpy()
        (found,) = run(folder / outer.model.file, {**inputs, "deep_feature": other})
        np.testing.assert_allclose(found, replaced, atol=TOLERANCE, rtol=0)
        assert np.abs(replaced - prediction).max() > 0.01


def test_weights_aside_are_shared(
    traced: tuple[Any, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from engine.bundle import FileRecord
    from export import deep_cache, graph

    _, source, entry = traced
    folder = tmp_path / "aside"
    folder.mkdir()
    shutil.copyfile(source / "unet.onnx", tmp_path / "inside.onnx")
    data = graph.finish(
        tmp_path / "inside.onnx",
        folder / "unet.onnx",
        takes=entry.inputs,
        gives=entry.outputs,
        data_file_bytes=0,
    )
    assert data is not None
    entry = replace(entry, model=FileRecord.of(folder / "unet.onnx"), data=FileRecord.of(data))
    whole, outer = deep_cache.split(folder, entry, branch=0)
    assert outer.data == whole.data == FileRecord.of(data)
    assert sorted(file.name for file in folder.iterdir()) == [
        "unet.onnx",
        "unet.onnx.data",
        "unet_shallow.onnx",
    ]


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder by TAESD's conventions, its magnitude and shift far from the usual."""
    torch.manual_seed(8)
    folder = tmp_path_factory.mktemp("taesd")
    with torch.no_grad():
        vae = _autoencoder_tiny()
    vae.register_to_config(scaling_factor=1.0, latent_magnitude=7, latent_shift=0.25)
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(taesd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A checkpoint in diffusers, and in our engine with all that can be saved with."""
    folder = tmp_path_factory.mktemp("saving")
    made = Pair(folder, unet_channels=9, vae="kl")
    made.engine.close()
    bundle = export_checkpoint(
        folder / "checkpoint", folder / "saving", fast_vae=taesd, deep_cache=0
    )
    made.engine = Engine.open(bundle.path, threads=1)
    yield made
    made.engine.close()


def in_diffusers(pair: Pair, request: InpaintRequest) -> Any:
    """The final latents of diffusers' pipeline with the same savings."""
    from PIL import Image

    unet, features, made = pair.pipe.unet, [], 0

    def cached(feature: Any) -> Any:
        nonlocal made
        if made % request.deep_cache_interval == 0:
            features[:] = [feature]
        made += 1
        return features[0][-len(feature) :]

    latents: list[Any] = []

    def after(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        latents.append(kept["latents"])
        if step + 1 != round(pipe.num_timesteps * request.guidance_share):
            return {}
        pipe._guidance_scale = 1.0
        halved = ("prompt_embeds", "mask", "masked_image_latents")
        return {name: kept[name].chunk(2)[-1] for name in halved}

    with warnings.catch_warnings(), watched(deep_module(unet, 0), cached):
        warnings.simplefilter("ignore")
        pair.pipe.scheduler = diffusers.DDIMScheduler.from_config(pair.config)
        pair.pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            image=Image.fromarray(request.image),
            mask_image=Image.fromarray(request.mask),
            height=request.image.shape[0],
            width=request.image.shape[1],
            strength=request.strength,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            callback_on_step_end=after,
            callback_on_step_end_tensor_inputs=[
                "latents",
                "prompt_embeds",
                "mask",
                "masked_image_latents",
            ],
            output_type="latent",
        )
    return latents[-1].numpy()


@pytest.mark.parametrize(
    "savings",
    [
        {"guidance_share": 0.4},
        {"deep_cache_interval": 2},
        {"deep_cache_interval": 3, "guidance_share": 0.4},
        {"deep_cache_interval": 2, "guidance_scale": 1.0, "strength": 0.8},
    ],
)
def test_the_engine_equals_diffusers_with_the_same_savings(
    pair: Pair, savings: dict[str, Any]
) -> None:
    request = make_request(**{"guidance_scale": 5.0, "scheduler": "ddim", **savings})
    expected, found = in_diffusers(pair, request), pair.engine.inpaint(request).latents
    assert np.abs(found - expected).max() <= LATENT_TOLERANCE
    usual = make_request(
        guidance_scale=request.guidance_scale, scheduler="ddim", strength=request.strength
    )
    assert np.abs(found - pair.engine.inpaint(usual).latents).max() > 10 * LATENT_TOLERANCE


def test_the_fast_decoder_equals_diffusers(pair: Pair, taesd: Path) -> None:
    bundle = pair.engine.bundle
    assert bundle.fast_latents is not None
    assert (bundle.fast_latents.scaling_factor, bundle.latents.scaling_factor) == (1.0, 0.5)
    vae = diffusers.AutoencoderTiny.from_pretrained(taesd)
    latents = normal(4, 2, 4, 9, 13) * 2
    (found,) = run(bundle.path / f"{FAST_DECODER}.onnx", {"latents": latents})
    with torch.no_grad():
        expected = vae.decode(torch.from_numpy(latents)).sample.numpy()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    result = pair.engine.inpaint(make_request(scheduler="ddim", vae="fast"))
    with torch.no_grad():
        raw = torch.from_numpy(result.latents) / vae.config.scaling_factor
        planes = vae.decode(raw).sample[0].numpy()
    levels = np.rint(np.clip(planes * 127.5 + 127.5, 0, 255)).transpose(1, 2, 0)
    assert np.abs(result.images[0] - levels).max() <= PICTURE_TOLERANCE


def test_what_the_manifest_says(pair: Pair, taesd: Path, tmp_path: Path) -> None:
    from export.deep_cache import add_to_bundle

    bundle = pair.engine.bundle
    assert len(bundle.provenance["fast_vae_weights_sha256"]) == 64
    assert bundle.components[SHALLOW_UNET].inputs[-1].shape[1] == bundle.deep_channels == 32
    with pytest.raises(ExportError, match="has a shallow UNet already"):
        add_to_bundle(bundle.path, tmp_path / "twice")


def test_a_bundle_is_split_afterwards(exported: Callable[[str], Bundle], tmp_path: Path) -> None:
    from export.deep_cache import main

    plain = exported("inpaint_tiny")
    output = tmp_path / "split"
    assert main([str(plain.path), "--output", str(output), "--branch", "1"]) == 0
    bundle = Bundle.open(output)
    assert set(bundle.components) == {*plain.components, SHALLOW_UNET}
    with Engine.open(output, threads=1) as engine:
        engine.inpaint(make_request(reference=False, deep_cache_interval=2, num_inference_steps=3))
    assert main([str(plain.path), "--output", str(tmp_path / "x"), "--branch", "2"]) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name is 'AutoencoderKL'; supported: Auto"),
        ({"latent_channels": 16}, "latent_channels is 16; the checkpoint's autoencoder has 4"),
        ({"num_decoder_blocks": [1, 1, 1]}, "one latent cell covers 4 pixels; 8 is supported"),
        ({"scaling_factor": -1}, "scaling_factor is -1; a number above 0 is needed"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(
    checkpoint: Get, taesd: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(taesd, tmp_path / "vae"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=message):
        export_checkpoint(checkpoint("inpaint_kl"), tmp_path / "bundle", fast_vae=folder)
    assert not (tmp_path / "bundle").exists()


def run(path: Path, inputs: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)
