"""Damaged pictures through the decoder that the service uses: ``python -m bench.pictures``.

Each case is a PNG or JPEG damaged by chance (``picture_mutations.py``) and decoded in a process
that is confined as the service's is. Counted are the processes that were lost, by how; pixels of an
earlier picture that show in a later one; and the memory that was used at most. The same seed gives
the same cases, whatever their number: case i is the same one in every run.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from bench.picture_forms import (
    RGB,
    chunk,
    exif,
    jpeg,
    jpeg_forms,
    png,
    png_forms,
    print_jpeg,
    with_segment,
)
from bench.picture_mutations import mutate
from engine import InputError
from engine.header import PictureLimits
from engine.image import decode_picture
from service.decoding.worker import Worker, WorkerLost

Pixels = npt.NDArray[np.uint8]

CANARY_EVERY: Final = 4
"""How often a picture that is known is decoded right before a damaged one."""

_WINDOW: Final = 8
"""So many bytes of the known picture in a row are a leak."""

_SEARCHED: Final = 1 << 20
"""Bytes of one result that are searched."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What came of a run.

    Attributes:
        seed: What the cases were made from.
        cases: How many there were.
        decoded: How many gave pixels.
        refused: How many were refused with a sentence.
        crashed: Processes that died.
        failed: Processes that ended by an error that is no refusal.
        late: Processes that were killed because they took too long.
        lied: Processes that answered with something that is no picture.
        leaked: Results that held pixels of an earlier picture.
        peak_bytes: Most memory that a process used.
        seconds: How long it took.
        ways: How often each way of damage was taken.
        findings: The cases that went wrong: number, ways of damage, what happened.
    """

    seed: int
    cases: int = 0
    decoded: int = 0
    refused: int = 0
    crashed: int = 0
    failed: int = 0
    late: int = 0
    lied: int = 0
    leaked: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    ways: dict[str, int] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Cases that went wrong."""
        return self.crashed + self.failed + self.late + self.lied + self.leaked


def corpus() -> list[bytes]:
    """Whole pictures of every form, the same ones always."""
    samples = np.random.RandomState(0)
    pictures = [data for _, data in (*png_forms(samples), *jpeg_forms(samples))]
    rough = samples.randint(0, 256, (33, 41, 4)).astype(np.uint8)
    inks = np.asarray(cv2.GaussianBlur(rough, (0, 0), 3), np.uint8)
    colours = inks[..., :3].astype(np.uint16)
    turned = chunk(b"eXIf", exif(6))
    pictures += [
        print_jpeg(inks),
        print_jpeg(inks, ycck=True, progressive=True),
        with_segment(jpeg(inks[..., :3]), 0xE1, b"Exif\0\0" + exif(8)),
        png(colours, depth=8, colour=RGB, extra=[turned, chunk(b"tEXt", b"a\0b")], pieces=5),
    ]
    return pictures


def cases(seed: int, start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
    """Damaged pictures by number, each with the ways of its damage."""
    whole = corpus()
    for number in range(start, stop):
        chance = random.Random(f"{seed}/{number}")
        yield number, *mutate(chance, chance.choice(whole), whole)


def run(
    *,
    seed: int,
    count: int,
    start: int = 0,
    megapixels: int = 1,
    seconds: float = 20.0,
    keep: Path | None = None,
) -> Report:
    """Decode damaged pictures and count what happens.

    Args:
        seed: What the cases are made from.
        count: How many.
        start: The number of the first.
        megapixels: Larger pictures are refused; a small number makes the run fast.
        seconds: How long one case may take, in seconds.
        keep: A folder for the files that went wrong.
    """
    limits = PictureLimits(max_bytes=20_000_000, max_pixels=megapixels * 1_000_000)
    report = Report(seed=seed)
    canaries = _Canaries()
    taken: Counter[str] = Counter()
    begin = time.perf_counter()
    worker = _started(limits)
    for number, ways, data in cases(seed, start, start + count):
        if number % CANARY_EVERY == 0:
            worker.ask("picture", canaries.next(), field="canary", seconds=seconds)
        report.cases += 1
        taken.update(ways.split("+"))
        kind: Any = "mask" if number % 5 == 4 else "picture"
        what = ""
        try:
            pixels = worker.ask(kind, data, field="picture", seconds=seconds)
        except InputError:
            report.refused += 1
        except WorkerLost as exc:
            setattr(report, exc.how, getattr(report, exc.how) + 1)
            what = str(exc)
            worker = _started(limits)
        else:
            report.decoded += 1
            if canaries.show_in(pixels):
                report.leaked += 1
                what = "pixels of an earlier picture"
        report.peak_bytes = max(report.peak_bytes, worker.peak_bytes())
        if what:
            report.findings.append({"case": number, "ways": ways, "what": what})
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{number}.bin").write_bytes(data)
    worker.kill()
    report.ways = dict(taken.most_common())
    report.seconds = time.perf_counter() - begin
    return report


class _Canaries:
    """Known pictures of noise, no part of which can be in any other picture by chance."""

    def __init__(self) -> None:
        noise = np.random.RandomState(11).randint(0, 256, (64, 64, 3)).astype(np.uint8)
        plain = png(noise.astype(np.uint16), depth=8, colour=RGB)
        self._files = (plain, jpeg(noise, cv2.IMWRITE_JPEG_QUALITY, 100))
        self._turn = 0
        known = [decode_picture(data) for data in self._files]
        orders = [order for pixels in known for order in (pixels, pixels[..., ::-1])]
        self._known = np.unique(np.concatenate([_windows(pixels) for pixels in orders]))

    def next(self) -> bytes:
        """The file of one of them, in turn."""
        self._turn += 1
        return self._files[self._turn % len(self._files)]

    def show_in(self, pixels: Pixels) -> bool:
        """Whether some of a known picture's bytes, in either order of channels, are there."""
        views = (pixels,) if pixels.ndim == 2 else (pixels, pixels[..., 0])
        for view in views:
            step = max(1, view.size // _SEARCHED)
            windows = _windows(view[::step])
            at = np.searchsorted(self._known, windows)
            if (self._known[np.minimum(at, self._known.size - 1)] == windows).any():
                return True
        return False


def _windows(pixels: Pixels) -> npt.NDArray[np.uint64]:
    """Every run of eight bytes, as one number."""
    flat = np.ascontiguousarray(pixels).reshape(-1)
    if flat.size < _WINDOW:
        return np.empty(0, np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(flat, _WINDOW)
    return np.ascontiguousarray(runs).view(np.uint64).reshape(-1)


def _started(limits: PictureLimits) -> Worker:
    worker = Worker(limits)
    worker.wait_ready()
    return worker


def table(report: Report) -> str:
    """The report as lines for people."""
    lines = [
        ("cases", f"{report.cases} (seed {report.seed})"),
        ("decoded", report.decoded),
        ("refused", report.refused),
        ("processes that crashed", report.crashed),
        ("processes that failed otherwise", report.failed),
        ("processes that took too long", report.late),
        ("processes that answered nonsense", report.lied),
        ("pictures with earlier pixels", report.leaked),
        ("peak memory of a process", f"{report.peak_bytes / 1e6:.0f} MB"),
        ("cases a second", f"{report.cases / max(report.seconds, 1e-9):.0f}"),
    ]
    return "\n".join(f"{name:34}{value}" for name, value in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this module; 1 when a case went wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--megapixels", type=int, default=1, help="larger ones are refused")
    parser.add_argument("--keep", type=Path, help="folder for the files that went wrong")
    parser.add_argument("--json", type=Path, help="write the report there too")
    chosen = parser.parse_args(arguments)
    report = run(
        seed=chosen.seed,
        count=chosen.cases,
        start=chosen.start,
        megapixels=chosen.megapixels,
        keep=chosen.keep,
    )
    print(table(report))
    for finding in report.findings[:20]:
        print(f"case {finding['case']}: {finding['ways']}: {finding['what']}", file=sys.stderr)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(asdict(report), indent=2) + "\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
