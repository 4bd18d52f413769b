"""Prompts with weights: the examples that the web UI publishes, and whatever people may type."""

from __future__ import annotations

import random
from itertools import groupby

import pytest

from engine import InputError
from engine.prompt_syntax import MAX_NESTING, MAX_WEIGHT, parse

Pieces = list[list[tuple[str, float]]]

EXAMPLES: list[tuple[str, Pieces]] = [
    # published with the web UI's parser
    ("normal text", [[("normal text", 1.0)]]),
    ("an (important) word", [[("an ", 1.0), ("important", 1.1), (" word", 1.0)]]),
    ("(unbalanced", [[("unbalanced", 1.1)]]),
    (r"\(literal\]", [[("(literal]", 1.0)]]),
    ("(unnecessary)(parens)", [[("unnecessaryparens", 1.1)]]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ]
        ],
    ),
    # told in the web UI's manual
    ("a ((word))", [[("a ", 1.0), ("word", 1.1 * 1.1)]]),
    ("a [word]", [[("a ", 1.0), ("word", 1 / 1.1)]]),
    ("(word:0.25)", [[("word", 0.25)]]),
    (r"\(word\)", [[("(word)", 1.0)]]),
    ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
    # what follows from the rules
    ("", [[]]),
    ("()", [[]]),
    (r"a \\ b\c", [[(r"a \ bc", 1.0)]]),
    ("a) b] c:", [[("a) b] c:", 1.0)]]),
    ("a:1.2) b", [[("a:1.2) b", 1.0)]]),
    ("(a: 1.2 )", [[("a", 1.2)]]),
    ("(a:-.5)(b:+2)(c:0)", [[("a", -0.5), ("b", 2.0), ("c", 0.0)]]),
    ("(a:b:1.5)", [[("a:b", 1.5)]]),
    ("([a)b]", [[("a", 1.1 / 1.1), ("b", 1 / 1.1)]]),
    ("a|b (c|d)", [[("a|b ", 1.0), ("c|d", 1.1)]]),
    ("BREAKFAST aBREAK", [[("BREAKFAST aBREAK", 1.0)]]),
    ("(a BREAK  BREAK b:1.2) BREAK", [[("a", 1.2)], [], [("b", 1.2)], []]),
    ("日本 (語:1.5)", [[("日本 ", 1.0), ("語", 1.5)]]),
]


@pytest.mark.parametrize(("prompt", "expected"), EXAMPLES)
def test_examples(prompt: str, expected: Pieces) -> None:
    assert told(prompt) == [
        [(text, pytest.approx(weight, rel=1e-15)) for text, weight in section]
        for section in expected
    ]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a [cat:dog:0.5]", "prompt: holds [...:0.5], but words cannot change between steps"),
        ("a [dog::12]", "holds [...:12], but words cannot"),
        ("a [cat|dog]", "holds [a|b], but words cannot change between steps"),
        ("a cat AND a dog", "holds AND, but prompts cannot be composed; write it in lower case"),
        ("a <lora:nice:0.8> cat", "holds <lora:nice:0.8>; a prompt cannot name networks"),
        ("(a:1.2.3)", "has the weight 1.2.3, which is no number"),
        ("(a:101)", "gives a word the weight 101; -100 to 100 are allowed"),
        ("((a:99):-9)", "gives a word the weight -891; -100 to 100"),
        (f"((a:{'9' * 400}):0)", "gives a word the weight nan; -100 to 100"),
        ("(" * 49 + "a", "gives a word the weight 106.719; -100 to 100"),
        ("(" * 33 + "[" * 32 + "a", f"nests brackets deeper than {MAX_NESTING}"),
    ],
)
def test_refusals(prompt: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse("prompt", prompt)
    assert message in str(caught.value)


def test_a_negative_prompt_is_not_composed() -> None:
    assert parse("negative_prompt", "LOW QUALITY AND BLURRY")[0][0].weight == 1.0
    with pytest.raises(InputError, match=r"^negative_prompt: holds <lora"):
        parse("negative_prompt", "<lora:a:1>")


def told(prompt: str) -> Pieces:
    return [
        [(piece.text, piece.weight) for piece in section] for section in parse("prompt", prompt)
    ]


def by_character(prompt: str) -> list[tuple[str, float]]:
    """The same rules once more, character by character, for prompts without BREAK."""
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        begin = opened[bracket].pop()
        weights[begin:] = [weight * factor for weight in weights[begin:]]

    at = 0
    while at < len(prompt):
        letter, rest = prompt[at], prompt[at + 1 :]
        number, bracket, _ = rest.partition(")")
        if letter == "\\":
            texts.append(rest[0] if rest and rest[0] in "()[]\\" else "")
            weights.append(1.0)
            at += 2 if texts[-1] else 1
            continue
        if letter in opened:
            opened[letter].append(len(texts))
        elif letter == ":" and bracket and opened["("] and is_number(number.strip()):
            close("(", float(number))
            at += len(number) + 1
        elif letter == ")" and opened["("]:
            close("(", 1.1)
        elif letter == "]" and opened["["]:
            close("[", 1 / 1.1)
        else:
            texts.append(letter)
            weights.append(1.0)
        at += 1
    for begins, factor in ((opened["("], 1.1), (opened["["], 1 / 1.1)):
        for begin in begins:
            weights[begin:] = [weight * factor for weight in weights[begin:]]
    runs = groupby(zip(texts, weights, strict=True), key=lambda pair: pair[1])
    made = [("".join(text for text, _ in run), weight) for weight, run in runs]
    return [(text, weight) for text, weight in made if text]


def is_number(text: str) -> bool:
    return text.lstrip("+-").replace(".", "", 1).isdecimal() and text.count("-") < 2


def test_random_prompts_are_read_by_the_rules() -> None:
    rng = random.Random(7)
    symbols = [*"()[]\\:,ab ", "(a:1.3)", ":0.5)", ": 2 )", "((", "))", r"\(", "[["]
    read = 0
    for _ in range(4000):
        prompt = "".join(rng.choices(symbols, k=rng.randint(1, 25)))
        try:
            found = told(prompt)
        except InputError:
            continue
        assert found == [by_character(prompt)], prompt
        read += 1
    assert read > 3500


@pytest.mark.parametrize(
    "repeated",
    [
        "(",
        "(a)",
        "[a]",
        "[(",
        "\\",
        " ",
        ": ",
        ":1",
        ":1 ",
        "<a:",
        "BREAK ",
        "(a:1)",
        "|[|]",
        "AND",
    ],
)
def test_long_prompts_end_soon_and_keep_their_bounds(repeated: str) -> None:
    for prompt in (repeated * (10_000 // len(repeated)), ("(" * 40 + repeated * 9) * 190):
        try:
            sections = parse("negative_prompt", prompt[:10_000])
        except InputError:
            continue
        assert all(abs(piece.weight) <= MAX_WEIGHT for section in sections for piece in section)
