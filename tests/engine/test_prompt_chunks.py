"""Long and weighted prompts: how they are laid into chunks, and what becomes of the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import Bundle, InputError
from engine.cache import ContentCache
from engine.models import TextEncoder, Told
from engine.prompt import PromptEncoder
from engine.prompt_chunks import MAX_CHUNKS, fill, pad_to_longest, weigh
from engine.sessions import open_session, select
from engine.wording import Wording
from tests.engine.tiny import TOKENS, WIDTH
from tests.engine.tiny_wording import BOS, EOS, PAD, VOCABULARY, make_wording_bundle

COMMA = 0


def lengths(*sections: list[int], size: int = 75) -> list[int]:
    """How many tokens each chunk gets; no token may be lost, and none change its place."""
    weighted = [[(section, 1.0)] for section in sections]
    chunks = fill("prompt", weighted, size=size, comma=COMMA)
    assert [token for chunk in chunks for token in chunk.tokens] == [t for s in sections for t in s]
    return [len(chunk.tokens) for chunk in chunks]


def words(count: int, *commas: int) -> list[int]:
    return [COMMA if i in commas else i + 1 for i in range(count)]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ([words(0)], [0]),
        ([words(75)], [75]),
        ([words(76)], [75, 1]),
        ([words(160)], [75, 75, 10]),
        # a comma at most 20 tokens before the end of the chunk ends it
        ([words(80, 54)], [75, 5]),
        ([words(80, 55)], [56, 24]),
        ([words(80, 60, 70)], [71, 9]),
        ([words(80, 74)], [75, 5]),
        ([words(75, 60)], [75]),
        # what was moved fills the next chunk
        ([words(140, 55)], [56, 75, 9]),
        ([words(140, 55, 120)], [56, 65, 19]),
        ([words(131, 55, 120)], [56, 75]),
        ([words(132, 55, 120)], [56, 65, 11]),
        # a comma that comes too late for the chunk is none to break after
        ([words(80, 60, 75)], [75, 5]),
        ([words(151, 75)], [75, 75, 1]),
        # BREAK
        ([words(3), words(4)], [3, 4]),
        ([words(3), []], [3]),
        ([[], words(3)], [0, 3]),
        ([words(3), [], words(4)], [3, 0, 4]),
        ([words(75), words(1)], [75, 1]),
        ([words(80, 60), words(1)], [61, 19, 1]),
    ],
)
def test_chunks(sections: list[list[int]], expected: list[int]) -> None:
    assert lengths(*sections) == expected


def test_weights_go_with_their_tokens() -> None:
    pieces = [([1, 2], 1.5), ([COMMA, 3, 4], 0.5), ([5], 2.0)]
    chunks = fill("prompt", [pieces], size=4, comma=COMMA)
    assert [(chunk.tokens, chunk.weights) for chunk in chunks] == [
        ((1, 2, COMMA), (1.5, 1.5, 0.5)),
        ((3, 4, 5), (0.5, 0.5, 2.0)),
    ]
    assert [chunk.tokens for chunk in fill("prompt", [pieces], size=4, comma=None)] == [
        (1, 2, COMMA, 3),
        (4, 5),
    ]


@pytest.mark.parametrize("sections", [[words(75 * MAX_CHUNKS + 1)], [words(1)] * (MAX_CHUNKS + 1)])
def test_too_many_chunks(sections: list[list[int]]) -> None:
    message = "^negative_prompt: needs more chunks of 75 tokens; at most 8 are allowed$"
    with pytest.raises(InputError, match=message):
        fill("negative_prompt", [[(s, 1.0)] for s in sections], size=75, comma=COMMA)


def test_the_mean_stays() -> None:
    hidden = np.random.default_rng(1).standard_normal((9, 5), dtype=np.float32) + 0.3
    weights = np.array([1, 1.3, 1.3, 0.5, -1, 0, 1, 1, 1], np.float32)
    weighed = weigh("prompt", hidden, weights)
    assert weighed.mean() == pytest.approx(hidden.mean(), rel=1e-5)
    ratios = weighed / hidden
    np.testing.assert_allclose(ratios / ratios[0], np.tile(weights[:, None], 5), rtol=1e-5)
    np.testing.assert_array_equal(weigh("prompt", hidden, np.ones(9, np.float32)), hidden)


def test_weights_that_leave_no_mean() -> None:
    hidden = np.ones((2, 3), np.float32)
    none = np.zeros((2, 3), np.float32)
    assert weigh("prompt", none, np.ones(2, np.float32)) is none
    with pytest.raises(InputError, match="^prompt: has weights that cancel each other out$"):
        weigh("prompt", hidden, np.array([1, -1], np.float32))


def test_padding() -> None:
    empty, short, long = (np.full((n * 2, 1), n, np.float32) for n in (1, 2, 4))
    padded = pad_to_longest([long, short], lambda: empty)
    assert padded[0] is long
    assert padded[1][:, 0].tolist() == [2, 2, 2, 2, 1, 1, 1, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wording_bundle(tmp_path_factory.mktemp("bundles") / "wording")


@pytest.fixture(scope="module")
def prompts(folder: Path) -> PromptEncoder:
    return prompts_of(folder)


def prompts_of(folder: Path) -> PromptEncoder:
    return PromptEncoder([folder / "tokenizer.json"], [encoder_of(folder)], ContentCache())


def hidden_of(told: Told) -> np.ndarray:
    return told["encoder_hidden_states"]


def encoder_of(folder: Path) -> TextEncoder:
    bundle = Bundle.open(folder)
    component = bundle.components["text_encoder"]
    return TextEncoder(open_session(select("cpu"), bundle.path, component, threads=1), component)


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_a_prompt_is_encoded_chunk_by_chunk(
    folder: Path, prompts: PromptEncoder, clip_skip: int
) -> None:
    encoder = encoder_of(folder)

    def chunk(text: str, *weights: float) -> np.ndarray:
        ids = [BOS, *(VOCABULARY[word] for word in text.split()), EOS]
        rows = np.array([1, *weights] + [1] * (TOKENS - 1 - len(weights)), np.float32)[:, None]
        (hidden,) = encoder(np.array(ids + [PAD] * (TOKENS - len(ids)), np.int64), clip_skip)
        return hidden * rows * (hidden.mean() / (hidden * rows).mean())

    found = prompts.weighted(
        "prompt", "a (red:1.5) apple the [cat] sky an apple BREAK dog", clip_skip=clip_skip
    )
    expected = [
        chunk("a red apple the cat sky", 1, 1.5, 1, 1, 1 / 1.1, 1),
        chunk("an apple", 1, 1),
        chunk("dog", 1),
    ]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-5)
    assert found.shape == (3 * TOKENS, WIDTH)
    assert not found.flags.writeable


def test_a_short_prompt_without_weights_is_the_plain_one(prompts: PromptEncoder) -> None:
    for text in ("", "a red apple", "an unknown word"):
        weighted = prompts.weighted("prompt", text, clip_skip=0)
        np.testing.assert_array_equal(weighted, hidden_of(prompts(text)))


def test_a_prompt_is_remembered_by_all_it_depends_on(prompts: PromptEncoder) -> None:
    answers = [
        hidden_of(prompts("(a)")),
        hidden_of(prompts("(a)", clip_skip=1)),
        hidden_of(prompts("(a)", clip_skip=2)),
        prompts.weighted("prompt", "(a)", clip_skip=0),
        prompts.weighted("prompt", "(a)", clip_skip=1),
    ]
    assert len({answer.tobytes() for answer in answers}) == len(answers)
    assert prompts.weighted("negative_prompt", "(a)", clip_skip=1) is answers[-1]


def test_the_shorter_text_is_followed_by_the_empty_one(prompts: PromptEncoder) -> None:
    wording = Wording(prompt_syntax="a1111", clip_skip=1)
    told = wording.told(prompts, ["bad", "a BREAK cat BREAK dog"])
    negative, positive = map(hidden_of, told)
    empty = prompts.weighted("prompt", "", clip_skip=1)
    bad = prompts.weighted("prompt", "bad", clip_skip=1)
    np.testing.assert_array_equal(negative, np.concatenate([bad, empty, empty]))
    assert len(positive) == 3 * TOKENS


def test_plain_texts_are_encoded_as_diffusers_does(prompts: PromptEncoder) -> None:
    negative, positive = Wording(clip_skip=1).told(prompts, ["(bad)", "a (cat:1.5)"])
    np.testing.assert_array_equal(hidden_of(negative), hidden_of(prompts("(bad)")))
    expected = hidden_of(prompts("a (cat:1.5)", clip_skip=1))
    np.testing.assert_array_equal(hidden_of(positive), expected)


def test_a_tokenizer_without_begin_and_end(bundle_path: Path) -> None:
    message = "prompt_syntax: is 'a1111', but the model's tokenizer has no begin, end and padding"
    with pytest.raises(InputError, match=message):
        prompts_of(bundle_path).weighted("prompt", "a", clip_skip=0)
