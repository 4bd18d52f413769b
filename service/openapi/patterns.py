"""Regular expressions, in the dialect of JSON Schema, for what clients write as text.

Only what ECMA-262, Python and Rust read alike is used: explicit digits and spaces instead of
``\\d`` and ``\\s``, which mean different characters in them, and no flags.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SPACES: Final = r"\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What ``str.strip`` takes away."""

SPACE: Final = f"[{_SPACES}]*"
NOT_BLANK: Final = f"[^{_SPACES}]"
_ZERO: Final = r"[+-]?(?:0+(?:\.0*)?|\.0+)"


def whole(alternatives: str, *, optional: bool) -> str:
    """Nothing but one of the alternatives and space round it; nothing at all where optional."""
    return f"^{SPACE}(?:{alternatives}){'?' if optional else ''}{SPACE}$"


def words(allowed: Iterable[str]) -> str:
    """One of a few words, in any case."""
    return "|".join("".join(_any_case(letter) for letter in word) for word in allowed)


def integers(low: int, high: int) -> str:
    """The integers from ``low`` to ``high``, which may begin with zeros and end in ``.0``."""
    parts = [rf"\+?0*{_natural(max(low, 0), high)}(?:\.0*)?"]
    if low < 0:
        parts.append(rf"-0*{_natural(1, -low)}(?:\.0*)?")
    return "|".join(parts + [_ZERO] * (low <= 0))


def multiples(low: int, high: int, step: int) -> str:
    """The multiples of ``step`` from ``low``, which is above 0, as ``integers`` are written."""
    return rf"\+?0*(?:{'|'.join(map(str, range(low, high + 1, step)))})(?:\.0*)?"


def numbers(low: int, high: int) -> str:
    """The decimal numbers from ``low`` to ``high``, both at least 0, without exponents."""
    parts = [rf"0*{_natural(low, high - 1)}(?:\.[0-9]*)?", rf"0*{_natural(high, high)}(?:\.0*)?"]
    if low == 0:
        parts.append(r"\.[0-9]+")
    return "|".join([rf"\+?(?:{'|'.join(parts)})"] + [_ZERO] * (low == 0))


def _any_case(letter: str) -> str:
    return f"[{letter.upper()}{letter}]" if letter.isalpha() else letter


def _natural(low: int, high: int) -> str:
    parts = []
    whole_lengths = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else low)
        last = min(high, 10**length - 1)
        if (first, last) == (10 ** (length - 1), 10**length - 1):
            whole_lengths.append(length - 1)
        else:
            parts += _same_length(str(first), str(last))
    if whole_lengths:
        parts.insert(0, f"[1-9][0-9]{{{whole_lengths[0]},{whole_lengths[-1]}}}")
    return f"(?:{'|'.join(parts)})"


def _same_length(low: str, high: str) -> list[str]:
    """Patterns that together match the numbers between two of the same number of digits."""
    rest = len(low) - 1
    if low[0] == high[0]:
        return [low[0] + tail for tail in (_same_length(low[1:], high[1:]) if rest else [""])]
    parts, first, last = [], int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        parts += [low[0] + tail for tail in _same_length(low[1:], "9" * rest)]
        first += 1
    above = []
    if high[1:] != "9" * rest:
        above = [high[0] + tail for tail in _same_length("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        digit = f"[{first}-{last}]" if first < last else str(first)
        parts.append(digit + ("" if rest == 0 else "[0-9]" if rest == 1 else f"[0-9]{{{rest}}}"))
    return parts + above
