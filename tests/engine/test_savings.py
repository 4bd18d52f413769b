"""What a request may give up to cost less: seen in the calls, and in nobody else's picture."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from engine import Bundle, BundleError, Engine, InputError
from engine.bundle import FAST_DECODER, SHALLOW_UNET, FileRecord
from tests.engine.tiny_savings import FAST_LATENTS, make_savings_bundle

Call = tuple[int, bool]
"""Rows of a UNet call, and whether it was shallow."""


@pytest.fixture(scope="module")
def saving_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_savings_bundle(tmp_path_factory.mktemp("bundles") / "saving")


@pytest.fixture
def saving(saving_path: Path) -> Iterator[Engine]:
    """An engine on a bundle that has everything; the test drives its loop."""
    with Engine.open(saving_path, threads=1, background=False) as engine:
        yield engine


@pytest.fixture
def calls(saving: Engine) -> list[Call]:
    """The UNet calls that the engine makes from now on."""
    return spy_on(saving)


def spy_on(engine: Engine) -> list[Call]:
    seen: list[Call] = []
    real = engine._loop._models.unet

    def spy(rows: Any) -> Any:
        assert len({row.shallow for row in rows}) == 1
        seen.append((len(rows), rows[0].shallow))
        return real(rows)

    object.__setattr__(engine._loop._models, "unet", spy)
    return seen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "fast"}, "vae: is 'fast', but the model has no fast decoder; allowed: full"),
        (
            {"deep_cache_interval": 3},
            "deep_cache_interval: is 3, but the model has no shallow UNet; allowed: 1",
        ),
    ],
)
def test_what_the_bundle_does_not_have_is_refused(
    engine: Engine, ask: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        engine.submit(ask(**changes))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "tiny"}, "vae: is 'tiny'; allowed: full, fast"),
        ({"guidance_share": 1.5}, "guidance_share: is 1.5; must be between 0 and 1"),
        ({"guidance_share": "all"}, "guidance_share: is 'all'; must be a number from 0 to 1"),
        ({"deep_cache_interval": 0}, "deep_cache_interval: is 0; must be between 1 and 20"),
        ({"deep_cache_interval": 1.5}, "deep_cache_interval: is 1.5; must be an integer"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    ask: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        ask(**changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("share", "rows"),
    [(1.0, [2, 2, 2, 2]), (0.5, [2, 2, 1, 1]), (0.3, [2, 2, 1, 1]), (0.0, [1, 1, 1, 1])],
)
def test_the_last_steps_go_without_the_negative_prompt(
    saving: Engine, ask: Any, calls: list[Call], share: float, rows: list[int]
) -> None:
    saving.inpaint(ask(num_inference_steps=4, guidance_scale=3.0, guidance_share=share))
    assert [count for count, _ in calls] == rows


def test_the_ends_of_the_share(saving: Engine, ask: Any) -> None:
    usual, alone = ask(guidance_scale=3.0), ask(guidance_scale=1.0)
    none = saving.inpaint(dataclasses.replace(usual, guidance_share=0.0))
    assert np.array_equal(none.latents, saving.inpaint(alone).latents)
    half = saving.inpaint(dataclasses.replace(usual, guidance_share=0.5))
    assert np.abs(half.latents - none.latents).max() > 0.01
    assert np.abs(half.latents - saving.inpaint(usual).latents).max() > 0.01


def test_the_whole_unet_runs_at_every_nth_step(saving: Engine, ask: Any, calls: list[Call]) -> None:
    request = ask(num_inference_steps=5, guidance_scale=3.0, deep_cache_interval=2)
    cached = saving.inpaint(dataclasses.replace(request, guidance_share=0.6, samples=2))
    assert calls == [(4, False), (4, True), (4, False), (2, True), (2, False)]
    whole = saving.inpaint(dataclasses.replace(request, deep_cache_interval=1))
    assert not any(shallow for _, shallow in calls[5:])
    assert np.abs(whole.latents[0] - cached.latents[0]).max() > 0.01


def test_a_shallow_step_is_the_outer_part_of_the_last_whole_one(
    saving: Engine, saving_path: Path, ask: Any
) -> None:
    """Of both rows: the second step's answer is the shallow graph's on the first step's feature."""
    opened = {
        name: onnxruntime.InferenceSession(saving_path / f"{name}.onnx")
        for name in ("unet", SHALLOW_UNET)
    }
    answers: list[tuple[dict[str, Any], Any]] = []
    real = saving._loop._models.unet

    def spy(rows: Any) -> Any:
        feeds = {
            "sample": np.stack(
                [np.concatenate([row.latents * row.scale, row.conditioning]) for row in rows]
            ).astype(np.float32),
            "timestep": np.array([row.timestep for row in rows], np.float32),
            "encoder_hidden_states": np.stack([row.told["encoder_hidden_states"] for row in rows]),
        }
        answers.append((feeds, real(rows).copy()))
        return answers[-1][1].copy()

    object.__setattr__(saving._loop._models, "unet", spy)
    saving.inpaint(ask(num_inference_steps=3, guidance_scale=3.0, deep_cache_interval=3))
    _, deep = opened["unet"].run(None, answers[0][0])
    for feeds, answer in answers[1:]:
        (expected,) = opened[SHALLOW_UNET].run(None, {**feeds, "deep_feature": deep})
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_the_fast_decoder_reads_latents_on_its_own_scale(
    saving: Engine, saving_path: Path, ask: Any, picture: Any
) -> None:
    full, fast = (
        saving.inpaint(ask(reference=True, strength=1.0, vae=vae)) for vae in ("full", "fast")
    )
    assert np.array_equal(full.latents, fast.latents)
    decoder = onnxruntime.InferenceSession(saving_path / f"{FAST_DECODER}.onnx")
    raw = fast.latents / np.float32(FAST_LATENTS.scaling_factor) + np.float32(0.1)
    (planes,) = decoder.run(None, {"latents": raw})
    levels = np.rint(np.clip(planes[0] * 127.5 + 127.5, 0, 255)).transpose(1, 2, 0)
    assert np.abs(fast.images[0] - levels).max() <= 1
    assert np.abs(full.images[0].astype(int) - fast.images[0]).mean() > 5


def test_nobodys_picture_depends_on_what_others_save(saving_path: Path, ask: Any) -> None:
    """Twelve mixed requests at random moments equal twelve single runs, and no call is mixed."""
    rng = random.Random(2)
    requests = [
        ask(
            num_inference_steps=rng.choice([3, 8, 15]),
            guidance_scale=rng.choice([1.0, 3.0]),
            guidance_share=rng.choice([0.0, 0.4, 1.0]),
            deep_cache_interval=rng.choice([1, 2, 3]),
            vae=rng.choice(["full", "fast"]),
            samples=rng.choice([1, 2]),
            strength=rng.choice([1.0, 0.6]),
            seed=i,
        )
        for i in range(12)
    ]
    with Engine.open(saving_path, threads=1) as engine:
        alone = [engine.inpaint(one).images for one in requests]
        calls = spy_on(engine)
        tickets = []
        for one in requests:
            tickets.append(engine.submit(one))
            time.sleep(rng.random() * 0.002)
        for ticket, expected in zip(tickets, alone, strict=True):
            got = ticket.result(timeout=60).images
            assert np.abs(got.astype(int) - expected).max() <= 1
    assert {shallow for _, shallow in calls} == {True, False}
    assert max(rows for rows, _ in calls) > 4, "nobody had company, so nothing was tested"


def test_a_step_in_parts_keeps_its_features(saving_path: Path, ask: Any) -> None:
    request = ask(samples=4, region="full", num_inference_steps=4, deep_cache_interval=2)
    images = []
    for pixels in (3 * 96 * 128, 100 * 96 * 128):
        with Engine.open(saving_path, threads=1, max_batch_pixels=pixels) as engine:
            calls = spy_on(engine)
            images.append(engine.inpaint(request).images.astype(int))
        assert (calls[0][0] == 3) == (pixels < 8 * 96 * 128)
    assert np.abs(images[0] - images[1]).max() <= 1


def test_a_data_file_may_be_shared(saving_path: Path, tmp_path: Path) -> None:
    folder = make_savings_bundle(tmp_path / "shared")
    bundle = Bundle.open(folder)
    (folder / "unet.onnx.data").write_bytes(b"weights")
    record = FileRecord.of(folder / "unet.onnx.data")
    both = {
        name: dataclasses.replace(bundle.components[name], data=record)
        for name in ("unet", SHALLOW_UNET)
    }
    dataclasses.replace(bundle, components={**bundle.components, **both}).write()
    names = [found.file for found in Bundle.open(folder).files()]
    assert names.count("unet.onnx.data") == 1
    (folder / "unet.onnx.data").write_bytes(b"WEIGHTS")
    with pytest.raises(BundleError, match=r"unet\.onnx\.data: was changed"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (SHALLOW_UNET, r"components missing: \['unet_shallow'\]"),
        (FAST_DECODER, r"components missing: \['vae_decoder_fast'\]"),
    ],
)
def test_half_of_it_is_no_bundle(
    saving_path: Path, tmp_path: Path, left_out: str, message: str
) -> None:
    bundle = Bundle.open(make_savings_bundle(tmp_path / "half"))
    components = {k: v for k, v in bundle.components.items() if k != left_out}
    with pytest.raises(BundleError, match=message):
        dataclasses.replace(bundle, components=components).write()


def test_a_deadline_may_choose_the_fast_decoder(saving_path: Path, ask: Any) -> None:
    with Engine.open(saving_path, threads=1) as engine:
        pixels = 64 * 64
        for network, seconds in (("unet", 0.5), ("vae_decoder", 20.0), (FAST_DECODER, 0.01)):
            for rows in (1, 2):
                engine.costs.add(network, pixels=pixels, rows=rows, seconds=seconds)
        planned = engine.inpaint(ask(num_inference_steps=4, deadline=10.0))
        assert planned.plan is not None
        assert (planned.plan.vae, planned.plan.reduced) == ("fast", True)
        asked_so = engine.inpaint(
            ask(num_inference_steps=planned.plan.num_inference_steps, vae="fast")
        )
        assert np.array_equal(planned.images, asked_so.images)
        plan = engine.inpaint(ask(num_inference_steps=4, vae="fast", deadline=100.0)).plan
        assert plan is not None
        assert (plan.vae, plan.reduced) == ("fast", False)
