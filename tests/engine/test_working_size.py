"""A working size of one's own: what the networks see, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Engine, InpaintRequest, InputError
from engine.canvas import plan
from engine.request import Region
from tests.engine.test_canvas import good_at
from tests.engine.tiny_savings import make_savings_bundle

Picture = npt.NDArray[np.uint8]


def square_hole(width: int, height: int, side: int) -> Picture:
    """A hole of so many pixels in the middle."""
    mask = np.zeros((height, width), np.uint8)
    x, y = (width - side) // 2, (height - side) // 2
    mask[y : y + side, x : x + side] = 1
    return mask


@pytest.mark.parametrize("region", ["auto", "full", "mask"])
@pytest.mark.parametrize("working_size", [64, 320, 384, 512, 768])
@pytest.mark.parametrize(
    ("width", "height", "side"),
    [(512, 512, 460), (512, 512, 40), (511, 342, 200), (2000, 1300, 600), (97, 640, 30)],
)
def test_the_longer_side_is_what_was_asked_for(
    region: Region, working_size: int, width: int, height: int, side: int
) -> None:
    mask, defaults = square_hole(width, height, side), good_at(512, 768)
    usual = plan(mask, region=region, defaults=defaults)
    chosen = plan(mask, region=region, defaults=defaults, working_size=working_size)
    assert chosen.box == usual.box
    assert max(chosen.padded_width, chosen.padded_height) == working_size
    x0, y0, x1, y1 = chosen.box
    scale = working_size / max(x1 - x0, y1 - y0)
    for found, extent in ((chosen.padded_width, x1 - x0), (chosen.padded_height, y1 - y0)):
        assert found % 8 == 0
        assert extent * scale - 1 < found < extent * scale + 9


def test_boxes_that_are_seen_at_their_own_size_come_in_few_shapes() -> None:
    shapes, defaults = set(), good_at(512, 768)
    for side in range(20, 385):
        geometry = plan(square_hole(2000, 1500, side), region="mask", defaults=defaults)
        shapes.add(geometry.latent_shape)
        x0, y0, x1, y1 = geometry.box
        if 2 * side > 512:  # context makes it twice as wide
            assert (geometry.working_width, geometry.working_height) == (x1 - x0, y1 - y0)
            assert 2 * side <= x1 - x0 < 2 * side + 64
    assert shapes == {(side // 8, side // 8) for side in (512, 576, 640, 704, 768)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"working_size": 56}, "is 56; must be between 64 and 1024"),
        ({"working_size": 1032}, "is 1032; must be between 64 and 1024"),
        ({"working_size": 100}, "is 100; must be a multiple of 8 from 64 to 1024"),
        ({"working_size": 96.0}, r"is 96\.0; must be an integer from 64 to 1024"),
        ({"working_size": True}, "is True; must be an integer from 64 to 1024"),
        ({"working_size": 64, "reference": True}, "cannot be chosen in reference mode"),
    ],
)
def test_what_is_no_working_size(ask: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^working_size: {message}"):
        ask(**changes)


def test_a_model_has_its_limit(manual: Engine, ask: Any) -> None:
    message = "^working_size: is 136; this model allows a multiple of 8 from 64 to 128$"
    for region in ("auto", "full"):
        with pytest.raises(InputError, match=message):
            manual.submit(ask(working_size=136, region=region))


@pytest.mark.parametrize("region", ["full", "mask"])
def test_what_is_kept_stays_and_what_is_told_is_true(engine: Engine, ask: Any, region: str) -> None:
    request: InpaintRequest = ask(region=region, working_size=64, samples=2)
    usual, small = engine.inpaint(ask(region=region, samples=2)), engine.inpaint(request)
    assert small.images.shape == usual.images.shape == (2, 96, 128, 3)
    assert small.region == usual.region
    assert max(small.working_size) == 64 < max(usual.working_size)
    assert small.latents is not None
    assert small.latents.shape[2:] == (small.working_size[1] // 8, small.working_size[0] // 8)
    kept = request.mask == 0
    for image in small.images:
        assert np.array_equal(image[kept], request.image[kept])
        assert not np.array_equal(image[~kept], request.image[~kept])
    again = engine.inpaint(request)
    assert np.array_equal(again.images, small.images)


def test_the_usual_size_by_name_is_the_usual_picture(engine: Engine, ask: Any) -> None:
    usual = engine.inpaint(ask(region="mask"))
    named = engine.inpaint(ask(region="mask", working_size=max(usual.working_size)))
    assert np.array_equal(usual.images, named.images)


def test_a_picture_too_large_for_the_whole_can_be_worked_on_small(engine: Engine) -> None:
    image = np.full((700, 1100, 3), 90, np.uint8)
    mask = square_hole(1100, 700, 200) * np.uint8(255)
    how: dict[str, Any] = {"image": image, "mask": mask, "prompt": "a cat", "region": "full"}
    with pytest.raises(InputError, match="full cannot work on a width of 1100"):
        engine.submit(InpaintRequest(**how))
    result = engine.inpaint(InpaintRequest(**how, working_size=128))
    assert result.region == (0, 0, 1100, 700)
    assert result.working_size == (128, 88)
    assert np.array_equal(result.images[0][mask == 0], image[mask == 0])


def test_holes_of_all_sizes_share_calls(manual: Engine, ask: Any, picture: Picture) -> None:
    shapes: list[int] = []
    real = manual._loop._models.unet

    def spy(rows: Any) -> Any:
        shapes.append(len(rows))
        return real(rows)

    object.__setattr__(manual._loop._models, "unet", spy)
    tickets = [
        manual.submit(
            ask(mask=square_hole(128, 96, side) * np.uint8(255), region="mask", working_size=64)
        )
        for side in (8, 20, 31)
    ]
    while manual.step():
        pass
    assert [ticket.result(0).working_size for ticket in tickets] == [(64, 64)] * 3
    assert max(shapes) == 6  # three guided requests


def test_a_plan_for_a_deadline_begins_there(ask: Any) -> None:
    with Engine.open(threads=1, background=False) as engine:
        loose = engine.inpaint(ask(working_size=96, deadline=600.0))
        assert loose.plan is not None
        assert loose.plan.working_size == loose.working_size
        assert max(loose.working_size) == 96
        assert not loose.plan.reduced
        width, height = loose.working_size
        for _ in range(16):
            engine.costs.add("unet", pixels=width * height, rows=2, seconds=1.0)
        tight = engine.inpaint(ask(working_size=96, deadline=3.4))
        assert tight.plan is not None
        assert tight.plan.reduced
        assert max(tight.working_size) == 72


@pytest.fixture(scope="module")
def saving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = make_savings_bundle(tmp_path_factory.mktemp("bundles") / "saving")
    with Engine.open(path, threads=1) as engine:
        yield engine


def test_an_editing_session_changes_what_it_costs(
    saving: Engine, ask: Any, picture: Picture, hole: Picture
) -> None:
    with saving.edit(picture) as session:
        session.change(
            mask=hole,
            prompt="a cat",
            seed=1,
            working_size=64,
            vae="fast",
            guidance_share=0.5,
            deep_cache_interval=2,
        )
        quick = session.result(20)
        with pytest.raises(InputError, match="working_size: is 136"):
            session.change(working_size=136)
        session.change(working_size=None, vae="full", guidance_share=1.0, deep_cache_interval=1)
        whole = session.result(20)
    assert quick.working_size == (64, 64)
    assert whole.working_size == (80, 80)
    wanted = saving.inpaint(ask(prompt="a cat"))
    assert np.array_equal(whole.images, wanted.images)
