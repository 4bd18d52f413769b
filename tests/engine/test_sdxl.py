"""SDXL's bundles: what the UNet is told of the prompt and of sizes, and in which company."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from engine import Bundle, BundleError, Engine, InputError
from engine.cache import PROMPT
from engine.job import draft
from engine.sessions.ort import OrtSession
from tests.engine import tiny
from tests.engine.tiny_sdxl import POOLED, WIDTH_2, make_sdxl_bundle

Feeds = Mapping[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def sdxl_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL bundle with 9 channels; do not write into it."""
    return make_sdxl_bundle(tmp_path_factory.mktemp("sdxl") / "nine")


@pytest.fixture
def sdxl(sdxl_path: Path) -> Iterator[Engine]:
    """An engine whose loop the test drives."""
    with Engine.open(sdxl_path, threads=1, background=False) as opened:
        yield opened


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Feeds]]:
    """What the networks were fed, each with its file's name."""
    calls: list[tuple[str, Feeds]] = []
    real = OrtSession.run

    def spy(self: OrtSession, feeds: Feeds) -> Any:
        calls.append((self._path.stem, {name: array.copy() for name, array in feeds.items()}))
        return real(self, feeds)

    monkeypatch.setattr(OrtSession, "run", spy)
    return calls


def of(network: str, fed: list[tuple[str, Feeds]]) -> list[Feeds]:
    return [feeds for name, feeds in fed if name == network]


def run(path: Path, feeds: Feeds) -> Any:
    return onnxruntime.InferenceSession(path).run(None, dict(feeds))


def test_both_texts_and_the_sizes_reach_the_unet(
    sdxl: Engine, sdxl_path: Path, ask: Any, fed: list[tuple[str, Feeds]]
) -> None:
    sdxl.inpaint(ask(guidance_scale=3.0, negative_prompt="a bad sky", region="full"))
    firsts, seconds = of("text_encoder", fed), of("text_encoder_2", fed)
    assert len(firsts) == len(seconds) == 2
    assert firsts[1]["input_ids"][0].tolist()[-1] == 0  # padded as its own tokenizer does
    assert seconds[1]["input_ids"][0].tolist()[-1] == 11
    call = of("unet", fed)[0]
    assert call["encoder_hidden_states"].shape == (2, tiny.TOKENS, tiny.WIDTH + WIDTH_2)
    for i in range(2):  # the negative prompt is encoded first
        (first,) = run(sdxl_path / "text_encoder.onnx", firsts[i])
        second, pooled = run(sdxl_path / "text_encoder_2.onnx", seconds[i])
        both = np.concatenate([first[0], second[0]], axis=1)
        assert np.array_equal(call["encoder_hidden_states"][i], both)
        assert np.array_equal(call["text_embeds"][i], pooled[0])
    assert call["text_embeds"].shape == (2, POOLED)
    assert not np.array_equal(call["text_embeds"][0], call["text_embeds"][1])
    assert call["time_ids"].tolist() == [[96, 128, 0, 0, 96, 128]] * 2  # height before width


def test_without_a_negative_prompt_the_embeddings_are_zeros(
    sdxl: Engine, ask: Any, fed: list[tuple[str, Feeds]]
) -> None:
    sdxl.inpaint(ask(guidance_scale=3.0))
    call = of("unet", fed)[0]
    for name in ("encoder_hidden_states", "text_embeds"):
        assert not call[name][0].any()
        assert call[name][1].any()
    assert len(of("text_encoder", fed)) == 1


def test_an_empty_negative_prompt_is_read_where_the_bundle_says_so(
    tmp_path: Path, ask: Any, fed: list[tuple[str, Feeds]]
) -> None:
    path = make_sdxl_bundle(tmp_path / "b", zeros=False)
    assert "force_zeros_for_empty_prompt" not in json.loads((path / "bundle.json").read_text())
    with Engine.open(path, background=False) as engine:
        engine.inpaint(ask(guidance_scale=3.0))
    call = of("unet", fed)[0]
    assert call["encoder_hidden_states"][0].any()
    assert len(of("text_encoder_2", fed)) == 2


def test_an_empty_prompt_is_read(sdxl: Engine, ask: Any, fed: list[tuple[str, Feeds]]) -> None:
    sdxl.inpaint(ask(prompt="", guidance_scale=1.0))
    assert of("unet", fed)[0]["text_embeds"].any()


def test_a_prompt_is_found_again_with_all_that_was_said_of_it(
    sdxl: Engine, ask: Any, fed: list[tuple[str, Feeds]]
) -> None:
    first = sdxl.inpaint(ask())
    fed.clear()
    again = sdxl.inpaint(ask())
    assert not of("text_encoder", fed)
    assert not of("text_encoder_2", fed)
    assert again.images.tobytes() == first.images.tobytes()
    figures = sdxl.cache_statistics[PROMPT]
    assert (figures.hits, figures.misses, figures.entries) == (1, 1, 1)
    assert figures.bytes > 4 * (tiny.TOKENS * (tiny.WIDTH + WIDTH_2) + POOLED)


def test_everything_that_is_told_is_seen_in_the_picture(sdxl: Engine, ask: Any) -> None:
    base, other = (sdxl.inpaint(ask(prompt=text)).latents for text in ("a red apple", "a cat"))
    assert np.abs(base - other).max() > 0.01
    wide = sdxl.inpaint(ask(region="full", width=128, height=64)).latents
    assert wide.shape == (1, 4, 8, 16)


@pytest.mark.parametrize("channels", [9, 4])
def test_nobodys_picture_depends_on_its_company(tmp_path: Path, ask: Any, channels: int) -> None:
    """Ten mixed requests that come at random moments equal ten single runs."""
    rng = random.Random(channels)
    requests = [
        ask(
            prompt=rng.choice(["a red apple", "a green cat", "the sky", ""]),
            negative_prompt=rng.choice(["", "bad"]),
            num_inference_steps=rng.choice([2, 5, 9]),
            guidance_scale=rng.choice([1.0, 3.0]),
            strength=rng.choice([1.0, 0.6]),
            scheduler=rng.choice(["ddim", "euler", "dpmpp_2m_karras"]),
            width=rng.choice([64, 128]),
            height=64,
            region="full",
            seed=i,
        )
        for i in range(10)
    ]
    path = make_sdxl_bundle(tmp_path / "b", unet_channels=channels)
    with Engine.open(path, threads=1, background=False) as alone:
        expected = [alone.inpaint(request) for request in requests]
    with Engine.open(path, threads=1, background=False) as engine:
        tickets = []
        for request in requests:
            tickets.append(engine.submit(request))
            for _ in range(rng.randrange(3)):
                engine.step()
        while engine.step():
            pass
        for ticket, single in zip(tickets, expected, strict=True):
            together = ticket.result(0)
            np.testing.assert_allclose(together.latents, single.latents, rtol=1e-5, atol=1e-5)
            assert np.abs(together.images.astype(int) - single.images).max() <= 1


def test_a_deadline_counts_both_text_encoders(sdxl: Engine, ask: Any) -> None:
    asked = ask(guidance_scale=1.0)
    sdxl.inpaint(asked)
    costs = sdxl.costs.known()
    text = sum(costs[name][1, 1] for name in ("text_encoder", "text_encoder_2"))
    planned = sdxl._loop._planner._before(draft(asked, sdxl.bundle))
    (encode,) = costs["vae_encoder"].values()
    assert planned == pytest.approx(text + encode)


def test_weights_are_for_one_text_encoder(sdxl: Engine, ask: Any) -> None:
    message = "prompt_syntax: is 'a1111', but the model has two text encoders; allowed: plain"
    with pytest.raises(InputError, match=message):
        sdxl.submit(ask(prompt_syntax="a1111"))
    with pytest.raises(InputError, match="clip_skip: is 1, but the model was made without it"):
        sdxl.submit(ask(clip_skip=1))


EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "family": (
        lambda m: m.update(family="sd1"),
        r"family is sd1, with text encoders \['text_encoder', 'text_encoder_2'\]; allowed: two for",
    ),
    "no second tokenizer": (
        lambda m: m.pop("tokenizer_2"),
        r"unknown: \['text_encoder_2'\]",
    ),
    "no second network": (
        lambda m: m["components"].pop("text_encoder_2"),
        r"components missing: \['text_encoder_2'\]",
    ),
    "another length": (
        lambda m: m["components"]["text_encoder_2"]["inputs"][0].update(shape=["batch", 9]),
        r"text_encoder_2 has tensors .*9.* expected .*8",
    ),
    "no pooled embeddings": (
        lambda m: m["components"]["text_encoder_2"]["outputs"].pop(),
        r"text_encoder_2 has tensors .* expected .*text_embeds",
    ),
    "another width": (
        lambda m: m["components"]["unet"]["inputs"][2].update(shape=["batch", "tokens", 16]),
        r"unet has tensors .* expected .*'encoder_hidden_states', \('batch', 'tokens', 28\)",
    ),
    "five sizes": (
        lambda m: m["components"]["unet"]["inputs"][4].update(shape=["batch", 5]),
        r"unet has tensors .* expected .*'time_ids', \('batch', 6\)",
    ),
    "zeros": (
        lambda m: m.update(force_zeros_for_empty_prompt=1),
        r"force_zeros_for_empty_prompt is 1; expected bool",
    ),
    "the last layer": (
        lambda m: m["components"]["text_encoder"]["outputs"][0].update(name="last_hidden_state"),
        r"text_encoder has tensors .*last_hidden_state.* expected .*penultimate_hidden_state",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_is_refused(sdxl_path: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sdxl_path, copy)
    change, message = EDITS[name]
    manifest = json.loads((copy / "bundle.json").read_text())
    change(manifest)
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_writing_what_was_read_gives_the_same_bytes(sdxl_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sdxl_path, copy)
    before = (copy / "bundle.json").read_bytes()
    Bundle.open(copy).write()
    assert (copy / "bundle.json").read_bytes() == before
