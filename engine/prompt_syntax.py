r"""The syntax of prompts that AUTOMATIC1111's web UI made usual: weights in brackets, and BREAK.

    (word)          more of it: 1.1 times          [word]    less of it: 1.1 times
    (word:1.3)      1.3 times                      BREAK     what follows begins a new chunk
    \( \) \[ \] \\  the character itself

Brackets nest and their factors multiply; one that is left open reaches to the end. What the web UI
does beyond that is refused by name, since a prompt without it means something else: prompt editing
``[a:b:0.5]``, alternation ``[a|b]``, composition with ``AND``, networks ``<lora:a:1>``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from engine.errors import InputError

PromptSyntax = Literal["plain", "a1111"]
"""``plain`` takes every character as it is."""

MAX_WEIGHT: Final = 100.0
MAX_NESTING: Final = 64

ROUND: Final = 1.1
SQUARE: Final = 1 / 1.1
"""What a pair of brackets multiplies the weight of what it holds with."""

_SHOWN_CHARACTERS: Final = 40
_BREAK: Final = re.compile(r"\bBREAK\b")
_AND: Final = re.compile(r"\bAND\b")
_NETWORK: Final = re.compile(r"<\w+:[^<>]+>")
_PART: Final = re.compile(
    r"""\\(?P<escaped>[()\[\]\\]?)
    | :\s*(?P<number>[+-]?[.\d]+)\s*(?P<end>[)\]])
    | [()\[\]]
    | [^\\()\[\]:]+
    | :""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text of one weight; it is tokenised on its own."""

    text: str
    weight: float


Section = tuple[Piece, ...]
"""What stands before, between or after BREAKs."""


def parse(field: str, prompt: str) -> tuple[Section, ...]:
    """The weighted pieces of a prompt, in a time that grows with its length and no faster.

    Args:
        field: The request's field that holds it: ``"prompt"`` or ``"negative_prompt"``.
        prompt: The text.

    Returns:
        One section more than there are BREAKs; a section without text has no pieces.

    Raises:
        InputError: For what is refused, for a weight that is no number, or beyond MAX_WEIGHT.
    """
    network = _NETWORK.search(prompt)
    if network is not None:
        raise InputError(field, f"holds {_shown(network[0])}; a prompt cannot name networks")
    if field == "prompt" and _AND.search(prompt):
        raise InputError(field, "holds AND, but prompts cannot be composed; write it in lower case")
    reading = _Reading(field)
    for part in _PART.finditer(prompt):
        reading.take(part)
    return reading.end()


class _Reading:
    """A prompt as far as it was read: texts, their weights, and the brackets that are open.

    ``None`` in place of a text is a BREAK. An open bracket is known by the index of its first text;
    round and square ones are matched without regard for each other.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._texts: list[str | None] = []
        self._weights: list[float] = []
        self._round: list[int] = []
        self._square: list[int] = []

    def take(self, part: re.Match[str]) -> None:
        """The next part of the prompt."""
        text, end = part[0], part["end"]
        if part["escaped"] is not None:
            self._add(part["escaped"])
        elif text in ("(", "["):
            if len(self._round) + len(self._square) == MAX_NESTING:
                raise InputError(self._field, f"nests brackets deeper than {MAX_NESTING}")
            (self._round if text == "(" else self._square).append(len(self._texts))
        elif end == ")" and self._round:
            self._weigh(self._round.pop(), self._number(part["number"]))
        elif end == "]" and self._square:
            reason = "words cannot change between steps; a weight is written (word:1.2)"
            raise InputError(self._field, f"holds [...{_shown(text)}, but {reason}")
        elif text == ")" and self._round:
            self._weigh(self._round.pop(), ROUND)
        elif text == "]" and self._square:
            begin = self._square.pop()
            if any("|" in held for held in self._texts[begin:] if held):
                raise InputError(self._field, "holds [a|b], but words cannot change between steps")
            self._weigh(begin, SQUARE)
        else:
            first, *others = _BREAK.split(text)
            self._add(first.rstrip() if others else first)
            for i, other in enumerate(others, start=1):
                self._add(None)
                self._add(other.lstrip() if i == len(others) else other.strip())

    def end(self) -> tuple[Section, ...]:
        """Everything that was read; what was left open reaches to here."""
        for begins, factor in ((self._round, ROUND), (self._square, SQUARE)):
            for begin in begins:
                self._weigh(begin, factor)
        sections: list[list[Piece]] = [[]]
        for text, weight in zip(self._texts, self._weights, strict=True):
            if text is None:
                sections.append([])
                continue
            if not abs(weight) <= MAX_WEIGHT:
                allowed = f"{-MAX_WEIGHT:g} to {MAX_WEIGHT:g} are allowed"
                raise InputError(self._field, f"gives a word the weight {weight:g}; {allowed}")
            pieces = sections[-1]
            if pieces and pieces[-1].weight == weight:
                text = pieces.pop().text + text
            pieces.append(Piece(text=text, weight=weight))
        return tuple(tuple(piece for piece in pieces if piece.text) for pieces in sections)

    def _add(self, text: str | None) -> None:
        self._texts.append(text)
        self._weights.append(1.0)

    def _weigh(self, begin: int, factor: float) -> None:
        for i in range(begin, len(self._weights)):
            self._weights[i] *= factor

    def _number(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            reason = f"has the weight {_shown(text)}, which is no number"
            raise InputError(self._field, reason) from None


def _shown(text: str) -> str:
    """The text as it may stand in an error's message."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
