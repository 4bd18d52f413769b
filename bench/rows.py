"""From what the peers did in each round to one row for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.peers.catalogue import BASELINE, Peer
from bench.peers.job import Pixels
from bench.quality import difference, summary
from bench.report import median
from bench.tegrastats import Sampler
from engine.image import Grey


@dataclass(slots=True, kw_only=True)
class Turn:
    """What one peer did in one round.

    Attributes:
        begin: Of the picture, in seconds of the monotonic clock.
        end: Of the picture.
        peak_mb: Largest resident memory of the process so far.
        picture: What was timed, (H, W, 3).
        compared: What is held against the baseline's; the same unless the noise had to be shared.
        load_s: Seconds to open the model; None where it was open already.
        warm_up_s: Seconds of the picture after that.
    """

    begin: float
    end: float
    peak_mb: float
    picture: Pixels
    compared: Pixels
    load_s: float | None = None
    warm_up_s: float | None = None

    @property
    def seconds(self) -> float:
        """Of the picture."""
        return self.end - self.begin


Found = tuple[Peer, str | None, Mapping[str, str | None], Mapping[int, Turn]]
"""A peer, why it failed, its versions, and its turns by round."""


def rows(
    found: Sequence[Found], *, energy: Sampler, mask: Grey | None = None
) -> list[dict[str, Any]]:
    """One row for each peer; ratios are the baseline's time by the peer's, within a round.

    Args:
        found: What was measured.
        energy: What the machine used meanwhile.
        mask: (H, W), white where the picture is filled: pictures are compared there too, of
            whatever noise they were made. None: they are not.
    """
    baseline: Mapping[int, Turn] = {}
    for peer, _, _, turns in found:
        if peer.name == BASELINE:
            baseline = turns
    made = [_row(*one, baseline=baseline, energy=energy) for one in found]
    for row, (_, _, _, turns) in zip(made, found, strict=True):
        common = [i for i in turns if i in baseline]
        if mask is not None and "seconds" in row and common:
            apart = [difference(baseline[i].picture, turns[i].picture, mask) for i in common]
            row["in_the_hole"] = summary(apart)
    return made


def psnr_db(a: Pixels, b: Pixels) -> float | None:
    """Peak signal to noise ratio of two pictures in dB; None where they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return None if error == 0 else round(10 * float(np.log10(255**2 / error)), 1)


def _row(
    peer: Peer,
    error: str | None,
    versions: Mapping[str, str | None],
    turns: Mapping[int, Turn],
    *,
    baseline: Mapping[int, Turn],
    energy: Sampler,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "peer": peer.name,
        "title": peer.title,
        "error": error,
        "precision": peer.precision,
        "note": peer.note,
        "versions": dict(versions),
    }
    if error is not None or not turns:
        return row
    done = list(turns.values())
    seconds = [turn.seconds for turn in done]
    ratios = [baseline[i].seconds / turn.seconds for i, turn in turns.items() if i in baseline]
    used = [energy.energy(turn.begin, turn.end) for turn in done]
    joules = [one.joules for one in used if one.joules is not None]
    return row | {
        "load_s": _rounded([turn.load_s for turn in done if turn.load_s is not None]),
        "warm_up_s": _rounded([turn.warm_up_s for turn in done if turn.warm_up_s is not None]),
        "seconds": _rounded(seconds),
        "median_s": round(median(seconds), 4),
        "ratios": _rounded(ratios),
        "ratio": round(median(ratios), 4) if ratios else None,
        "peak_mb": max(turn.peak_mb for turn in done),
        "energy_j": round(median(joules), 2) if joules else None,
        "energy_reason": None if joules else used[0].reason,
        "contrast": round(float(done[0].picture.std()), 1),
        "quality": _quality(peer, turns, baseline),
    }


def _quality(
    peer: Peer, turns: Mapping[int, Turn], baseline: Mapping[int, Turn]
) -> dict[str, Any] | None:
    """The worst round's PSNR to the baseline's picture; None where the noise was not the same."""
    common = [i for i in turns if i in baseline]
    if peer.shared_noise:
        common = [i for i in common if i == 0]  # the round in which it was asked for that
    elif peer.noise == "own":
        common = []
    if not common:
        return None
    found = [psnr_db(turns[i].compared, baseline[i].picture) for i in common]
    different = [value for value in found if value is not None]
    return {"psnr_db": min(different) if different else None, "identical": not different}


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
