"""Requests whose texts are read in another way: what is refused, and the company they keep."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Bundle, BundleError, Engine, InputError
from engine.bundle import SKIPPED_STATES
from tests.engine.tiny_wording import make_wording_bundle

LONG = "a red apple the cat sky an apple the dog, a bad cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wording_bundle(tmp_path_factory.mktemp("bundles") / "wording")


@pytest.fixture
def manual(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, threads=1, background=False) as engine:
        yield engine


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_syntax": "compel"}, "prompt_syntax: is 'compel'; allowed: plain, a1111"),
        ({"clip_skip": 33}, "clip_skip: is 33; must be between 0 and 32"),
        ({"clip_skip": 1.5}, "clip_skip: is 1.5; must be an integer"),
        ({"prompt_syntax": "a1111", "prompt": "(a:1.2.3)"}, "prompt: has the weight 1.2.3"),
        (
            {"prompt_syntax": "a1111", "negative_prompt": "(a:1e3)(b:200)"},
            "negative_prompt: gives a word the weight 200",
        ),
    ],
)
def test_bad_values(ask: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ask(**changes)
    assert str(caught.value).startswith(message)


def test_layers_that_the_bundle_cannot_leave_out(manual: Engine, engine: Engine, ask: Any) -> None:
    message = r"clip_skip: is 3, but the model was made for 0 to 2 \(edgefill export --clip-skip"
    with pytest.raises(InputError, match=message):
        manual.submit(ask(clip_skip=3))
    with pytest.raises(InputError, match="is 1, but the model was made without it"):
        engine.submit(ask(clip_skip=1))


def test_a_prompt_of_too_many_chunks_ends_its_request_alone(manual: Engine, ask: Any) -> None:
    good = manual.submit(ask(prompt_syntax="a1111"))
    bad = manual.submit(ask(prompt_syntax="a1111", prompt="a red " * 25))
    while manual.step():
        pass
    assert good.result().images.shape == (1, 96, 128, 3)
    with pytest.raises(InputError, match="prompt: needs more chunks of 6 tokens; at most 8 are"):
        bad.result()


def test_every_choice_changes_the_picture(manual: Engine, ask: Any) -> None:
    usual = {"prompt": LONG, "negative_prompt": "bad", "num_inference_steps": 2, "seed": 4}
    choices: list[dict[str, Any]] = [
        {},
        {"clip_skip": 1},
        {"clip_skip": 2},
        {"prompt_syntax": "a1111"},
        {"prompt_syntax": "a1111", "clip_skip": 1},
        {"prompt_syntax": "a1111", "prompt": f"(red:1.5) {LONG}"},
        {"prompt_syntax": "a1111", "negative_prompt": "bad BREAK bad BREAK sky BREAK sky"},
        {"prompt_syntax": "a1111", "guidance_scale": 1.0},
    ]
    made = [manual.inpaint(ask(**usual | choice)).latents for choice in choices]
    assert len({latents.tobytes() for latents in made}) == len(choices)
    again = manual.inpaint(ask(**usual | choices[5])).latents
    np.testing.assert_array_equal(again, made[5])


def test_plain_is_the_default(manual: Engine, ask: Any) -> None:
    request = ask(prompt="a (red:1.5) apple BREAK", num_inference_steps=2)
    found = manual.inpaint(request).latents
    explicit = dataclasses.replace(request, prompt_syntax="plain", clip_skip=np.int64(0))
    np.testing.assert_array_equal(found, manual.inpaint(explicit).latents)


def test_the_company_does_not_change_the_picture(manual: Engine, ask: Any) -> None:
    rng = random.Random(5)
    requests = [
        ask(
            prompt=" ".join(rng.choices(["a", "(red:1.4)", "cat", "BREAK", "[sky]", ","], k=n)),
            negative_prompt=rng.choice(["", "bad", LONG]),
            prompt_syntax=rng.choice(["plain", "a1111", "a1111"]),
            clip_skip=rng.choice([0, 1, 2]),
            guidance_scale=rng.choice([1.0, 3.0]),
            num_inference_steps=rng.randint(1, 4),
            seed=n,
        )
        for n in range(12)
    ]
    alone = [manual.inpaint(request) for request in requests]
    tickets = [manual.submit(request) for request in requests]
    while manual.step():
        pass
    for ticket, expected in zip(tickets, alone, strict=True):
        np.testing.assert_allclose(ticket.result().latents, expected.latents, atol=1e-5)


def test_a_bundle_with_other_states_is_refused(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.clip_skips == 2
    text = bundle.components["text_encoder"]
    for changes in ({"shape": ("batch", "tokens", 8, 16)}, {"shape": ("batch", 2, 8, 15)}):
        other = dataclasses.replace(text.outputs[1], **changes)
        entry = dataclasses.replace(text, outputs=(text.outputs[0], other))
        broken = dataclasses.replace(
            bundle, components={**bundle.components, "text_encoder": entry}
        )
        with pytest.raises(BundleError, match=f"text_encoder has tensors .*{SKIPPED_STATES}"):
            broken.write()
