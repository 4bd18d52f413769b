"""Clip skip is diffusers', weights and chunks are the web UI's: against torch, to the latents.

What the web UI does is written here once more, in torch and from its description: every prompt is
given with the chunks that it must be laid into, and each chunk goes through transformers.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Engine, InpaintRequest
from engine.bundle import SKIPPED_STATES, Bundle
from export import ExportError, export_checkpoint
from tests.engine.pairs import LATENT_TOLERANCE, make_request
from tests.export.checkpoints import WIDTH
from tests.export.originals import TOLERANCE

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.export

LAYERS = 2

Chunks = list[list[tuple[str, float]]]


@dataclass(kw_only=True)
class Pair:
    """A checkpoint in diffusers, and in our engine with all layers free to be left out."""

    pipe: Any
    engine: Engine


@pytest.fixture(scope="module")
def pair(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("wording")
    source = Path(shutil.copytree(checkpoint("inpaint_kl"), folder / "checkpoint"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(source, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():  # as training leaves it: without a bias there is no mean to restore
        pipe.text_encoder.text_model.final_layer_norm.bias += torch.linspace(-0.5, 1.5, WIDTH)
    pipe.text_encoder.save_pretrained(source / "text_encoder")
    bundle = export_checkpoint(source, folder / "skipping", clip_skip=LAYERS)
    with Engine.open(bundle.path, threads=1) as engine:
        yield Pair(pipe=pipe, engine=engine)


def in_diffusers(pair: Pair, request: InpaintRequest, **texts: Any) -> Any:
    """The final latents of diffusers' pipeline."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair.pipe.scheduler = diffusers.DDIMScheduler.from_config(pair.pipe.scheduler.config)
        return pair.pipe(
            image=Image.fromarray(request.image),
            mask_image=Image.fromarray(request.mask),
            height=request.image.shape[0],
            width=request.image.shape[1],
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="latent",
            **texts,
        ).images.numpy()


def test_the_text_encoder_without_its_last_layers(pair: Pair) -> None:
    import onnxruntime

    bundle = pair.engine.bundle
    entry = bundle.components["text_encoder"]
    assert (bundle.clip_skips, entry.outputs[1].name) == (LAYERS, SKIPPED_STATES)
    assert entry.outputs[1].shape == ("batch", LAYERS, 77, WIDTH)
    assert entry.parity is not None
    assert entry.parity.psnr_db > 100
    ids = np.random.default_rng(1).integers(0, 500, (2, 77))
    session = onnxruntime.InferenceSession(bundle.path / entry.model.file)
    last, skipped = session.run(None, {"input_ids": ids})
    with torch.no_grad():
        said = pair.pipe.text_encoder(torch.from_numpy(ids), output_hidden_states=True)
    np.testing.assert_allclose(last, said.last_hidden_state.numpy(), atol=TOLERANCE, rtol=0)
    for skip in (1, 2):
        with torch.no_grad():
            norm = pair.pipe.text_encoder.text_model.final_layer_norm
            expected = norm(said.hidden_states[-(skip + 1)]).numpy()
        np.testing.assert_allclose(skipped[:, skip - 1], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_equals_diffusers(pair: Pair, clip_skip: int, guidance: float) -> None:
    request = make_request(scheduler="ddim", guidance_scale=guidance, clip_skip=clip_skip)
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    expected = in_diffusers(pair, request, **texts, clip_skip=clip_skip)
    found = pair.engine.inpaint(request).latents
    assert np.abs(found - expected).max() <= LATENT_TOLERANCE
    if clip_skip:
        usual = in_diffusers(pair, request, **texts)
        assert np.abs(found - usual).max() > 10 * LATENT_TOLERANCE


def in_torch(pair: Pair, chunks: Chunks, *, clip_skip: int) -> Any:
    """Embeddings (1, n L, D) of chunks whose texts have weights, mean restored."""
    tokenizer, encoder = pair.pipe.tokenizer, pair.pipe.text_encoder
    made = []
    for chunk in chunks:
        ids, weights = [tokenizer.bos_token_id], [1.0]
        for text, weight in chunk:
            tokens = tokenizer(text, add_special_tokens=False).input_ids
            ids += tokens
            weights += [weight] * len(tokens)
        rest = 77 - len(ids)
        assert rest > 0
        ids += [tokenizer.eos_token_id] * rest
        weights += [1.0] * rest
        with torch.no_grad():
            states = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states
            z = encoder.text_model.final_layer_norm(states[-1 - clip_skip])
            mean = z.mean()
            z = z * torch.tensor(weights)[None, :, None]
            made.append(z * (mean / z.mean()))
    return torch.cat(made, dim=1)


PROMPTS: list[tuple[str, Chunks]] = [
    ("a red apple", [[("a red apple", 1.0)]]),
    ("a (red:1.5) apple", [[("a", 1.0), ("red", 1.5), ("apple", 1.0)]]),
    (
        "an old (((yellow))) cat [bird] BREAK (flower sky:0.7)",
        [
            [("an old", 1.0), ("yellow", 1.331), ("cat", 1.0), ("bird", 1 / 1.1)],
            [("flower sky", 0.7)],
        ],
    ),
    (r"a \(small\) cat (dog:0)", [[("a (small) cat", 1.0), ("dog", 0.0)]]),
    ("red " * 80, [[("red " * 75, 1.0)], [("red " * 5, 1.0)]]),
    ("red " * 60 + ", " + "cat " * 30, [[("red " * 60 + ",", 1.0)], [("cat " * 30, 1.0)]]),
    (
        "red " * 70 + "(cat, dog lamp, and the sea with a bird:1.2)" + " sky" * 80,
        [
            [("red " * 70, 1.0), ("cat, dog lamp,", 1.2)],
            [("and the sea with a bird", 1.2), ("sky " * 69, 1.0)],
            [("sky " * 11, 1.0)],
        ],
    ),
]


@pytest.mark.parametrize("clip_skip", [0, 1])
@pytest.mark.parametrize(("prompt", "chunks"), PROMPTS)
def test_weights_and_chunks_are_the_web_uis(
    pair: Pair, prompt: str, chunks: Chunks, clip_skip: int
) -> None:
    request = make_request(
        scheduler="ddim",
        guidance_scale=5.0,
        prompt=prompt,
        negative_prompt="a (black:1.3) wall",
        prompt_syntax="a1111",
        clip_skip=clip_skip,
    )
    negative: Chunks = [[("a", 1.0), ("black", 1.3), ("wall", 1.0)]]
    negative += [[]] * (len(chunks) - 1)
    expected = in_diffusers(
        pair,
        request,
        prompt_embeds=in_torch(pair, chunks, clip_skip=clip_skip),
        negative_prompt_embeds=in_torch(pair, negative, clip_skip=clip_skip),
    )
    found = pair.engine.inpaint(request).latents
    assert np.abs(found - expected).max() <= LATENT_TOLERANCE


def test_a_weight_is_seen(pair: Pair) -> None:
    usual = {"scheduler": "ddim", "guidance_scale": 5.0, "prompt_syntax": "a1111"}
    made = [
        pair.engine.inpaint(make_request(**usual, prompt=prompt)).latents
        for prompt in ("a red apple", "a (red:1.5) apple", "a red apple BREAK")
    ]
    assert np.abs(made[1] - made[0]).max() > 10 * LATENT_TOLERANCE
    np.testing.assert_array_equal(made[2], made[0])


@pytest.mark.parametrize("clip_skip", [0, 3])
def test_layers_that_are_not_there(
    checkpoint: Callable[[str], Path], tmp_path: Path, clip_skip: int
) -> None:
    message = f"clip_skip is {clip_skip}; this text encoder allows 1 to 2$"
    with pytest.raises(ExportError, match=message):
        export_checkpoint(checkpoint("inpaint_kl"), tmp_path / "bundle", clip_skip=clip_skip)
    assert not (tmp_path / "bundle").exists()


def test_a_usual_bundle_has_no_such_output(exported: Callable[[str], Bundle]) -> None:
    bundle = exported("inpaint_kl")
    assert bundle.clip_skips == 0
    assert len(bundle.components["text_encoder"].outputs) == 1
