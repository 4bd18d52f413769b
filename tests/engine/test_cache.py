"""What is found again by content: counted, bounded, and without a trace in the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Engine
from engine.cache import ENTRY_BYTES, KINDS, MASKED_PICTURE, PICTURE, PROMPT, ContentCache
from engine.sessions.ort import OrtSession

Picture = npt.NDArray[np.uint8]
Runs = Counter[str]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """How often each network ran."""
    counter: Runs = Counter()
    real = OrtSession.run

    def counted(self: OrtSession, feeds: Mapping[str, npt.NDArray[Any]]) -> Any:
        counter[self._path.stem] += 1
        return real(self, feeds)

    monkeypatch.setattr(OrtSession, "run", counted)
    return counter


def filled(value: float, size: int = 4) -> npt.NDArray[np.float32]:
    return np.full(size, value, np.float32)


def test_an_answer_is_made_once() -> None:
    cache = ContentCache()
    first = cache.get(PROMPT, (b"a",), lambda: filled(1))
    assert cache.get(PROMPT, (b"a",), lambda: filled(2)) is first
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0
    figures = cache.statistics()[PROMPT]
    assert (figures.hits, figures.misses, figures.entries) == (1, 1, 1)
    assert figures.bytes == first.nbytes + ENTRY_BYTES
    assert cache.statistics()[PICTURE].misses == 0


def test_other_content_is_another_answer() -> None:
    cache = ContentCache()
    ones = np.ones((2, 6), np.uint8)
    contents: list[tuple[str, tuple[Any, ...]]] = [
        (PROMPT, (b"ab", b"c")),
        (PROMPT, (b"a", b"bc")),
        (PICTURE, (ones,)),
        (MASKED_PICTURE, (ones,)),
        (PICTURE, (ones.reshape(3, 4),)),
        (PICTURE, (ones, ones)),
        (PICTURE, (ones.astype(np.int8),)),
        (PICTURE, (ones[:, ::2],)),
    ]
    for i, (kind, content) in enumerate(contents):
        assert cache.get(kind, content, lambda i=i: filled(i))[0] == i
    assert all(cache.statistics()[kind].hits == 0 for kind in KINDS)
    assert cache.get(PICTURE, (ones.copy(),), lambda: filled(-1))[0] == 2


def test_it_is_bounded_in_bytes_and_keeps_what_was_used_last() -> None:
    entry = filled(0).nbytes + ENTRY_BYTES
    cache = ContentCache(3 * entry)
    for text in (b"a", b"b", b"c", b"a", b"d"):
        cache.get(PROMPT, (text,), lambda: filled(1))
        assert sum(figures.bytes for figures in cache.statistics().values()) <= cache.limit
    assert cache.get(PROMPT, (b"a",), lambda: filled(2))[0] == 1
    assert cache.get(PROMPT, (b"b",), lambda: filled(2))[0] == 2  # it had to go for the d
    cache.get(PICTURE, (b"large",), lambda: filled(3, size=entry))
    assert cache.statistics()[PICTURE].entries == 0  # larger than all that is allowed


def test_none_is_kept_where_nothing_is_allowed() -> None:
    cache = ContentCache(0)
    for value in (1, 2):
        assert cache.get(PROMPT, (b"a",), lambda value=value: filled(value))[0] == value
    figures = cache.statistics()[PROMPT]
    assert (figures.hits, figures.misses, figures.bytes) == (0, 2, 0)


def test_a_new_seed_runs_no_encoder(manual: Engine, ask: Any, runs: Runs) -> None:
    first = manual.inpaint(ask(seed=1))
    assert runs == {"text_encoder": 2, "vae_encoder": 1, "unet": 4, "vae_decoder": 1}
    runs.clear()
    second = manual.inpaint(ask(seed=2))
    assert runs == {"unet": 4, "vae_decoder": 1}
    assert not np.array_equal(first.images, second.images)
    figures = manual.cache_statistics
    assert (figures[PROMPT].hits, figures[PROMPT].misses) == (2, 2)
    assert (figures[MASKED_PICTURE].hits, figures[MASKED_PICTURE].misses) == (1, 1)
    assert figures[PICTURE].misses == 0


def test_a_new_prompt_runs_the_text_encoder_alone(manual: Engine, ask: Any, runs: Runs) -> None:
    manual.inpaint(ask(strength=0.7))
    runs.clear()
    manual.inpaint(ask(strength=0.7, prompt="a blue dog"))
    assert runs == {"text_encoder": 1, "unet": 3, "vae_decoder": 1}


def test_what_the_mask_hides_is_not_looked_at(
    manual: Engine, ask: Any, picture: Picture, hole: Picture, runs: Runs
) -> None:
    """So a picture that was filled once is known when it is filled again."""
    whole = manual.inpaint(ask(region="full"))
    runs.clear()
    again = manual.inpaint(ask(region="full", image=whole.images[0]))
    assert runs["vae_encoder"] == 0
    assert np.array_equal(again.latents, whole.latents)
    manual.inpaint(ask(region="full", mask=np.roll(hole, 8)))
    assert runs["vae_encoder"] == 1


def test_samples_share_one_encoding_and_so_do_both_modes(
    manual: Engine, ask: Any, runs: Runs
) -> None:
    manual.inpaint(ask(reference=True, samples=3, strength=0.7))
    assert runs["vae_encoder"] == 2  # the picture and the masked picture
    manual.inpaint(ask(region="full", strength=0.7))
    assert runs["vae_encoder"] == 2


@pytest.mark.parametrize("bundle", ["bundle_path", "plain_bundle_path"])
@pytest.mark.parametrize("reference", [False, True])
def test_the_bytes_are_the_same_with_and_without(
    request: pytest.FixtureRequest, ask: Any, bundle: str, reference: bool
) -> None:
    path: Path = request.getfixturevalue(bundle)
    asked = ask(reference=reference, samples=2, strength=0.7, scheduler="euler_a")
    with Engine.open(path, threads=1, cache_bytes=0) as engine:
        expected = engine.inpaint(asked)
    with Engine.open(path, threads=1) as engine:
        for _ in range(2):
            result = engine.inpaint(asked)
            assert np.array_equal(result.images, expected.images)
            assert np.array_equal(result.latents, expected.latents)
        assert engine.cache_statistics[PROMPT].hits == 2


def test_nothing_is_taken_for_something_else(
    bundle_path: Path, manual: Engine, ask: Any, picture: Picture, hole: Picture
) -> None:
    """One engine that remembers, and one that does not, asked for neighbours of all kinds."""
    other_hole, black, other = np.roll(hole, 16), np.zeros_like(picture), picture[::-1]
    asked = [
        ask(region="full", strength=strength, image=image, mask=mask)
        for strength in (1.0, 0.7)
        for image in (picture, black, other)
        for mask in (hole, other_hole)
    ]
    with Engine.open(bundle_path, threads=1, background=False, cache_bytes=0) as forgetful:
        for one in asked * 2:
            assert np.array_equal(manual.inpaint(one).images, forgetful.inpaint(one).images)
