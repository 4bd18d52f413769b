"""Steps work in memory that is there already, and constants are written once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Bundle, Engine
from engine.errors import TensorMismatch
from engine.models import Unet, UnetRow
from engine.schedulers import Room, SolverState, make_schedule, step
from engine.sessions import open_session, select
from tests.engine.tiny import SCHEDULER

WARM_UP, WATCHED = 9, 8
LATENTS = 4 * 64 * 64 * 4
"""Bytes of the latents of one picture of 512x512."""


def row(rng: np.random.Generator, **changes: Any) -> UnetRow:
    def draw(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    made = {
        "latents": draw(4, 8, 8),
        "timestep": 500.0,
        "told": {"encoder_hidden_states": draw(8, 16)},
        "conditioning": draw(5, 8, 8),
    }
    return UnetRow(**(made | changes))


@pytest.mark.parametrize("bundle", ["bundle_path", "plain_bundle_path"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "pndm", "euler"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_step_allocates_nothing_large(
    request: pytest.FixtureRequest, ask: Any, bundle: str, scheduler: str, guidance: float
) -> None:
    path: Path = request.getfixturevalue(bundle)
    asked = ask(
        width=512,
        height=512,
        region="full",
        scheduler=scheduler,
        guidance_scale=guidance,
        num_inference_steps=WARM_UP + WATCHED + 2,
    )
    with Engine.open(path, threads=1, background=False) as engine:
        ticket = engine.submit(asked)
        for _ in range(WARM_UP):
            engine.step()
        tracemalloc.start()
        try:
            engine.step()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(WATCHED):
                engine.step()
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert not ticket.done(), "the watched rounds were no steps"
    assert peak - before < 3 * LATENTS // 4  # numpy broadcasts through a buffer of half of that
    assert after - before < LATENTS // 8


SAMPLERS = ("ddim", "dpmpp_2m", "pndm", "heun", "unipc", "euler_a", "lcm")


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_steps_in_a_room_are_the_same_steps(scheduler: str) -> None:
    schedule = make_schedule(scheduler, SCHEDULER, num_inference_steps=9)
    rng = np.random.default_rng(3)
    start = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    pure, tight, room = SolverState(latents=start), SolverState(latents=start.copy()), Room(start)
    for i in range(len(schedule)):
        said = rng.standard_normal(start.shape).astype(np.float32)
        noise = rng.standard_normal(start.shape).astype(np.float32)
        before = pure.latents.copy()
        after = step(schedule, i, pure, said, noise)
        assert np.array_equal(pure.latents, before)  # a state is not changed
        lent = said.copy()
        pure, tight = after, step(schedule, i, tight, lent, noise, room)
        lent[:] = np.nan  # the network's memory is its own again
        assert pure.latents.tobytes() == tight.latents.tobytes()


def test_constants_are_written_where_they_are_new(bundle_path: Path) -> None:
    """Whoever joins, leaves or changes places: a call equals the same call with nothing held."""
    bundle = Bundle.open(bundle_path)
    session = open_session(select("cpu"), bundle.path, bundle.components["unet"], threads=1)
    rng = np.random.default_rng(0)
    held, (a, b, c) = Unet(session, channels=9), [row(rng) for _ in range(3)]
    other_text = row(rng, latents=a.latents, conditioning=a.conditioning)
    other_picture = row(rng, latents=a.latents, told=a.told)
    calls = [[a, b], [a, b], [b, a], [a, c], [other_text, c], [other_picture, c], [a, a], [a, b]]
    for rows in calls:
        expected = Unet(session, channels=9)(rows).copy()
        assert np.array_equal(held(rows), expected)
    for _ in range(20):  # arrays that are gone may leave their address to others
        rows = [row(rng)]
        expected = Unet(session, channels=9)(rows).copy()
        assert np.array_equal(held(rows), expected)


def test_only_what_changes_is_written(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    session = open_session(select("cpu"), bundle.path, bundle.components["unet"], threads=1)
    unet, one = Unet(session, channels=9), row(np.random.default_rng(0))
    first = unet([one]).copy()
    (feeds,) = unet._feeds.values()
    held = feeds.by_name["encoder_hidden_states"]
    held[:] = 7  # stays, as the row's text has not changed
    assert not np.array_equal(unet([one]), first)
    assert (held == 7).all()


def test_a_row_is_scaled(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    session = open_session(select("cpu"), bundle.path, bundle.components["unet"], threads=1)
    unet, one = Unet(session, channels=9), row(np.random.default_rng(0))
    scaled = unet([UnetRow(**{f: getattr(one, f) for f in one.__slots__} | {"scale": 0.5})]).copy()
    half = np.multiply(one.latents, np.float32(0.5))
    by_hand = UnetRow(**{f: getattr(one, f) for f in one.__slots__} | {"latents": half})
    assert np.array_equal(scaled, unet([by_hand]))


def test_a_preview_may_be_made_later(manual: Engine, ask: Any) -> None:
    """It shows its own step, however many were made since."""
    at_once: list[npt.NDArray[np.uint8]] = []
    later = []

    def look(number: int, total: int, preview: Any) -> None:
        at_once.append(preview())
        later.append(preview)

    ticket = manual.submit(ask(num_inference_steps=6), on_step=look)
    while manual.step():
        pass
    assert ticket.done()
    assert len(later) == 6
    for seen, preview in zip(at_once, later, strict=True):
        assert np.array_equal(seen, preview())
    assert not np.array_equal(at_once[0], at_once[-1])


def test_a_network_reads_what_lies_there_now(bundle_path: Path) -> None:
    """Bindings are kept by address; values and arrays may change."""
    bundle = Bundle.open(bundle_path)
    component = bundle.components["vae_decoder"]
    session = open_session(select("cpu"), bundle.path, component, threads=1)
    latents = np.ones((1, 4, 8, 8), np.float32)
    ones = session.run({"latents": latents})[0].copy()
    latents[:] = 0.25
    changed = session.run({"latents": latents})[0].copy()
    assert not np.array_equal(changed, ones)
    assert np.array_equal(session.run({"latents": np.ones_like(latents)})[0], ones)
    wide = session.run({"latents": np.ones((1, 4, 8, 16), np.float32)})[0]
    assert wide.shape == (1, 3, 64, 128)
    assert np.array_equal(session.run({"latents": latents})[0], changed)


def test_the_door_stays_shut_for_arrays_that_passed_it(bundle_path: Path) -> None:
    """What was checked once is known by the array itself, not by its name or its shape."""
    bundle = Bundle.open(bundle_path)
    component = bundle.components["vae_decoder"]
    session = open_session(select("cpu"), bundle.path, component, threads=1)
    latents = np.ones((1, 4, 8, 8), np.float32)
    session.run({"latents": latents})
    assert session.run({"latents": latents})[0].shape == (1, 3, 64, 64)
    with pytest.raises(TensorMismatch, match="float64"):
        session.run({"latents": latents.astype(np.float64)})
    with pytest.raises(TensorMismatch, match="missing"):
        session.run({"others": latents})
    with pytest.raises(TensorMismatch, match="not known"):
        session.run({"latents": latents, "others": latents})
    with pytest.raises(TensorMismatch, match="contiguous"):
        session.run({"latents": latents.transpose(0, 1, 3, 2)})


def test_a_schedule_is_made_once() -> None:
    first = make_schedule("ddim", SCHEDULER, num_inference_steps=9)
    assert make_schedule("ddim", dict(SCHEDULER), num_inference_steps=9) is first
    other = make_schedule("ddim", SCHEDULER | {"beta_end": 0.013}, num_inference_steps=9)
    assert not np.array_equal(other.latents, first.latents)
    assert len(make_schedule("ddim", SCHEDULER, num_inference_steps=9, start=2)) == 7
    with pytest.raises(ValueError, match="read-only"):
        first.history[0, 0] = 1.0
