"""LoRA files fused at export: against the formula, and PEFT where it is there; what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import ExportError, export_checkpoint
from export.checkpoint import Checkpoint
from tests.export.originals import TOLERANCE, normal, original, session

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.export

Get = Callable[[str], Path]
State = dict[str, Any]

BLOCK = "down_blocks.1.attentions.0"
QUERY = f"{BLOCK}.transformer_blocks.0.attn1.to_q"
OUT = f"{BLOCK}.transformer_blocks.0.attn2.to_out.0"
UNET = (
    QUERY,
    OUT,
    f"{BLOCK}.transformer_blocks.0.ff.net.0.proj",
    f"{BLOCK}.proj_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.resnets.0.conv_shortcut",
    "mid_block.resnets.1.time_emb_proj",
    "conv_in",
    "time_embedding.linear_1",
)
ORIGINAL = {
    QUERY: "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
    OUT: "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_out_0",
    f"{BLOCK}.transformer_blocks.0.ff.net.0.proj": (
        "lora_unet_input_blocks_3_1_transformer_blocks_0_ff_net_0_proj"
    ),
    f"{BLOCK}.proj_in": "lora_unet_input_blocks_3_1_proj_in",
    "down_blocks.0.resnets.0.conv1": "lora_unet_input_blocks_1_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_2_0_op",
    "up_blocks.0.resnets.0.conv_shortcut": "lora_unet_output_blocks_0_0_skip_connection",
    "mid_block.resnets.1.time_emb_proj": "lora_unet_middle_block_2_emb_layers_1",
    "conv_in": "lora_unet_input_blocks_0_0",
    "time_embedding.linear_1": "lora_unet_time_embed_0",
}
"""The names of the UNet's layers in files made from the original layout; one block a level."""

TEXT = (
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.0.self_attn.out_proj",
    "text_model.encoder.layers.1.mlp.fc2",
)


def weights(folder: Path, network: str) -> State:
    from safetensors.torch import load_file

    (file,) = (folder / network).glob("*.safetensors")
    return load_file(file)


def pairs(folder: Path, *, rank: int, seed: int, layers: tuple[str, ...] = (*UNET, *TEXT)) -> Any:
    """For each layer: its network, B, A and the product in the shape of its weight."""
    random = torch.Generator().manual_seed(seed)
    for layer in layers:
        network = "text_encoder" if layer.startswith("text_model") else "unet"
        shape = weights(folder, network)[f"{layer}.weight"].shape
        down = torch.randn(rank, *shape[1:], generator=random) * 0.1
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=random) * 0.1
        change = (up.flatten(1).double() @ down.flatten(1).double()).reshape(shape)
        yield network, layer, up, down, change


def kohya(network: str, layer: str) -> str:
    return f"lora_{'te' if network == 'text_encoder' else 'unet'}_{layer.replace('.', '_')}"


def write(path: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    from safetensors.torch import save_file

    save_file({name: value.contiguous().clone() for name, value in state.items()}, path, metadata)
    return path


def fused(folder: Path, files: list[tuple[Path, float]]) -> dict[str, State]:
    """The weights as they are exported."""
    from export import networks
    from export.lora import with_loras

    opened = with_loras(Checkpoint.open(folder), files)
    text = networks.text_encoder(opened, tokens=77).module
    return {
        "unet": networks.unet(opened).module.state_dict(),
        "text_encoder": text.state_dict(),
    }


def held(found: dict[str, State], network: str, name: str) -> Any:
    """A weight of a fused network, whose names the wrapper puts something before."""
    (key,) = [key for key in found[network] if f".{key}".endswith(f".{name}")]
    return found[network][key]


@pytest.mark.parametrize(
    "layout", ["kohya", "original", "peft", "adapter", "old", "metadata", "rslora"]
)
def test_weights_are_those_of_the_formula(layout: str, checkpoint: Get, tmp_path: Path) -> None:
    folder = checkpoint("plain_kl")
    layers = (QUERY, OUT, *TEXT[:1]) if layout == "old" else (*UNET, *TEXT)
    state: State = {}
    expected = {}
    metadata = None
    for network, layer, up, down, change in pairs(folder, rank=3, seed=1, layers=layers):
        factor = 0.7
        if layout in ("kohya", "original"):
            name = kohya(network, layer)
            if network == "unet" and layout == "original":
                name = ORIGINAL[layer]
            state |= {f"{name}.lora_up.weight": up.half(), f"{name}.lora_down.weight": down.half()}
            if layer != QUERY:  # without it, alpha is the rank
                state[f"{name}.alpha"] = torch.tensor(2.0)
                factor *= 2 / 3
            up, down = up.half().double(), down.half().double()
            change = (up.flatten(1) @ down.flatten(1)).reshape(change.shape)
        elif layout == "old":
            name = f"{network}.{layer.replace('attn1.', 'attn1.processor.')}"
            for new, was in (("q_proj", "to_q"), ("to_out.0", "to_out")):
                name = name.replace(new, was)
            state |= {f"{name}_lora.up.weight": up, f"{name}_lora.down.weight": down}
        else:
            middle = ".default" if layout == "adapter" else ""
            name = f"{network}.{layer}"
            state |= {
                f"{name}.lora_A{middle}.weight": down,
                f"{name}.lora_B{middle}.weight": up,
            }
            if layout in ("metadata", "rslora"):
                alpha = 12.0 if layer == QUERY else 6.0
                factor *= alpha / (math.sqrt(3) if layout == "rslora" else 3)
        expected[network, layer] = factor * change
    if layout in ("metadata", "rslora"):
        said = {}
        for network in ("unet", "text_encoder"):
            said |= {f"{network}.lora_alpha": 6, f"{network}.r": 3}
            said |= {f"{network}.alpha_pattern": {"attn1.to_q": 12}}
            said |= {f"{network}.use_rslora": layout == "rslora"}
        metadata = {"lora_adapter_metadata": json.dumps(said)}
    file = write(tmp_path / "a.safetensors", state, metadata)
    before, after = fused(folder, []), fused(folder, [(file, 0.7)])
    for network, others in before.items():
        for name, value in others.items():
            changed = [expected[key] for key in expected if name.endswith(f"{key[1]}.weight")]
            change = changed[0] if changed and network == _network(name, expected) else 0.0
            torch.testing.assert_close(
                after[network][name].double(), value.double() + change, atol=2e-6, rtol=0, msg=name
            )


def _network(name: str, expected: dict[tuple[str, str], Any]) -> str:
    return next(network for network, layer in expected if name.endswith(f"{layer}.weight"))


def test_several_files_add_up_and_a_kernel_may_stand_between(
    checkpoint: Get, tmp_path: Path
) -> None:
    folder = checkpoint("plain_kl")
    layer = "down_blocks.0.resnets.0.conv1"
    weight = weights(folder, "unet")[f"{layer}.weight"]
    name = kohya("unet", layer)
    up, down = torch.randn(weight.shape[0], 2, 1, 1), torch.randn(2, weight.shape[1], 1, 1)
    mid = torch.randn(2, 2, 3, 3)
    state = {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.lora_mid.weight": mid,
    }
    one = write(tmp_path / "one.safetensors", state)
    other = write(
        tmp_path / "two.safetensors",
        {
            f"unet.{layer}.lora_B.weight": torch.ones(weight.shape[0], 1, 1, 1),
            f"unet.{layer}.lora_A.weight": torch.ones(1, *weight.shape[1:]),
        },
    )
    found = held(fused(folder, [(one, 0.5), (other, -2.0)]), "unet", f"{layer}.weight")
    # The chain of three convolutions is one convolution, but for what it sees beyond the border.
    x = torch.randn(1, weight.shape[1], 9, 9)
    conv = torch.nn.functional.conv2d
    chain = conv(conv(conv(x, down), mid), up)
    torch.testing.assert_close(
        conv(x, found),
        conv(x, weight) + 0.5 * chain - 2 * conv(x, torch.ones_like(weight)),
        atol=1e-3,
        rtol=1e-4,
    )


def test_bundle_of_a_checkpoint_with_lora(checkpoint: Get, tmp_path: Path) -> None:
    import diffusers

    folder = checkpoint("inpaint_kl")
    state: State = {}
    changes = {}
    for network, layer, up, down, change in pairs(folder, rank=4, seed=3):
        state |= {f"{network}.{layer}.lora_A.weight": down, f"{network}.{layer}.lora_B.weight": up}
        changes[network, layer] = change
    file = write(tmp_path / "style.safetensors", state)
    bundle = export_checkpoint(
        folder, tmp_path / "bundle", loras=[(file, 1.5)], scheduler="lcm", deep_cache=0
    )
    (record,) = bundle.provenance["loras"]
    assert (record["file"], record["scale"]) == ("style.safetensors", 1.5)
    assert len(record["sha256"]) == 64
    assert bundle.defaults.scheduler == "lcm"
    assert (bundle.defaults.num_inference_steps, bundle.defaults.guidance_scale) == (4, 1.0)

    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    plain = original(folder, "unet")
    inputs = {
        "sample": normal(1, 2, 9, 9, 8),
        "timestep": np.array([20.0, 700.0], np.float32),
        "encoder_hidden_states": normal(2, 2, 77, 48),
    }
    with torch.no_grad():
        for (network, layer), change in changes.items():
            if network == "unet":
                unet.get_submodule(layer).weight += 1.5 * change.float()
        expected = unet(**{k: torch.from_numpy(v) for k, v in inputs.items()}).sample.numpy()
    found = session(bundle, "unet")(**inputs)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    assert np.abs(plain(**inputs) - expected).max() > 0.01


def test_weights_are_those_that_diffusers_fuses(checkpoint: Get, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs peft, which no extra installs")
    from diffusers import StableDiffusionPipeline

    folder = checkpoint("plain_kl")
    state: State = {}
    # diffusers passes over kohya's names of the others.
    layers = (*(layer for layer in UNET if "_block" in layer), *TEXT)
    for network, layer, up, down, _ in pairs(folder, rank=3, seed=5, layers=layers):
        name = kohya(network, layer)
        state |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        state[f"{name}.alpha"] = torch.tensor(1.5)
    file = write(tmp_path / "a.safetensors", state)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=0.8)
    pipeline.unload_lora_weights()
    found = fused(folder, [(file, 0.8)])
    for network in ("unet", "text_encoder"):
        for name, value in getattr(pipeline, network).state_dict().items():
            ours = held(found, network, name)
            torch.testing.assert_close(ours, value, atol=1e-6, rtol=0, msg=name)


A, B = torch.zeros(2, 64), torch.zeros(64, 2)
KOHYA = kohya("unet", QUERY)
GOOD = {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B}
MID = "lora_unet_conv_in.lora_"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds no weights"),
        ({f"{KOHYA}.lora_down.weight": A}, r"but no lora_up \(or lora_B\) for down_blocks\.1"),
        ({f"{KOHYA}.alpha": A}, r"_to_q\.alpha, but no lora_down \(or lora_A\) for"),
        (GOOD | {f"{KOHYA}.lora_up.weight": B.T}, r"\[2, 64\]\S*, .* do not fit down_.*\[64, 64\]"),
        (GOOD | {f"{KOHYA}.lora_down.weight": A[:, 1:]}, r"_to_q\.lora_down\.weight \[2, 63\] do"),
        (GOOD | {f"{KOHYA}.lora_up.weight": B.int()}, "is of type I32; supported: F32"),
        (GOOD | {f"{KOHYA}.lora_mid.weight": A}, r"lora_mid\.weight \[2, 64\] do not fit"),
        (GOOD | {f"{KOHYA}.alpha": A}, r"_to_q\.alpha has the shape \[2, 64\]; one number is"),
        ({f"{KOHYA}.lora_down.weight": A[:0], f"{KOHYA}.lora_up.weight": B[:, :0]}, "do not fit"),
        (GOOD | {"lora_unet_x.alpha": A}, "lora_unet_x.alpha is for no layer of this checkpoint's"),
        (GOOD | {"lora_te2_x.alpha": A}, "is for a text_encoder_2, which this checkpoint has not"),
        (GOOD | {"lora_vae_x.alpha": A}, "is for no network that is known; understood are kohya"),
        (GOOD | {f"unet.{QUERY}.lora_A.weight": A}, r"both lora_unet_\S* and unet\.\S* are for"),
        (GOOD | {"something": A}, "something is no part of a LoRA; understood are kohya's names"),
        ({f"{KOHYA}.hada_w1_a": A}, "is LoHa; plain LoRA and LoCon are supported"),
        ({f"{KOHYA}.lokr_w1": A}, "is LoKr; plain"),
        (GOOD | {f"{KOHYA}.dora_scale": A}, "is DoRA; plain"),
        ({f"unet.{QUERY}.lora_magnitude_vector": A}, "is DoRA; plain"),
        ({f"{KOHYA}.oft_blocks": A}, "is OFT; plain"),
        ({f"{KOHYA}.diff": A}, "is a whole difference of weights; plain"),
        ({f"unet.{QUERY}.lora_B.bias": A}, "is LoRA with biases; plain"),
    ],
)
def test_what_is_no_lora_for_the_checkpoint(
    state: State, message: str, checkpoint: Get, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.safetensors", state)
    with pytest.raises(ExportError, match=message):
        export_checkpoint(checkpoint("plain_kl"), tmp_path / "bundle", loras=[(file, 1.0)])
    assert list(tmp_path.iterdir()) == [file]


def test_files_and_scales_that_are_refused(checkpoint: Get, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", GOOD)
    bad = write(tmp_path / "b.safetensors", GOOD, {"lora_adapter_metadata": "[1]"})
    dora = json.dumps({"unet.use_dora": True})
    other = write(tmp_path / "c.safetensors", GOOD, {"lora_adapter_metadata": dora})
    (tmp_path / "a.bin").write_bytes(b"\x80")
    cases = [
        (file, math.nan, "the scale is nan; a number is needed"),
        (tmp_path / "a.bin", 1.0, r"is a pickle, .* only \.safetensors"),
        (tmp_path / "absent.safetensors", 1.0, r"is no whole \.safetensors file: No such file"),
        (bad, 1.0, "its lora_adapter_metadata cannot be read"),
        (other, 1.0, "is DoRA; plain LoRA and LoCon are supported"),
    ]
    for path, scale, message in cases:
        with pytest.raises(ExportError, match=message):
            export_checkpoint(checkpoint("plain_kl"), tmp_path / "x", loras=[(path, scale)])
