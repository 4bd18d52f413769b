"""What it costs to decode out of the server's own process: ``python -m bench.decoding``.

A picture and its mask are decoded in a thread and in the decoding processes, turn by turn, so that
whatever else the machine does weighs on both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from bench import report
from engine.image import decode_mask, decode_picture, encode_jpeg, encode_png
from service.decoding import PictureDecoder
from service.settings import Settings


def measure(*, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds for a pair of pictures by form: in a thread, in the processes, and how
    much more the latter is in the median round.

    Args:
        side: Of the pictures, in pixels.
        rounds: How often each is decoded.
    """
    noise = np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8)
    picture = np.asarray(cv2.GaussianBlur(noise, (0, 0), 3), np.uint8)
    mask = np.zeros_like(picture)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    decoder = PictureDecoder.open(limits=Settings().picture_limits)
    try:
        return {
            name: asyncio.run(_rounds(decoder, encode(picture), encode(mask), rounds))
            for name, encode in (("png", encode_png), ("jpeg", encode_jpeg))
        }
    finally:
        decoder.close()


async def _rounds(
    decoder: PictureDecoder, picture: bytes, mask: bytes, rounds: int
) -> dict[str, float]:
    threads, processes = [], []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        await asyncio.to_thread(lambda: (decode_picture(picture), decode_mask(mask)))
        between = time.perf_counter()
        await asyncio.gather(
            decoder.picture(picture, field="init_image"), decoder.mask(mask, field="mask_image")
        )
        threads.append(between - begin)
        processes.append(time.perf_counter() - between)
    more = [b - a for a, b in zip(threads, processes, strict=True)]
    named = {"thread_ms": threads, "processes_ms": processes, "more_ms": more}
    # The first round pays for memory that is touched for the first time.
    return {name: statistics.median(values[1:]) * 1000 for name, values in named.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoding", description=__doc__)
    parser.add_argument("--side", type=int, default=512, help="pixels (default: 512)")
    parser.add_argument("--rounds", type=int, default=200, help="how often (default: 200)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    chosen = parser.parse_args(arguments)
    figures = measure(side=chosen.side, rounds=chosen.rounds)
    print(f"{'median ms of a pair':24}{'thread':>10}{'processes':>12}{'more':>8}")
    for name, row in figures.items():
        size = f"{name} {chosen.side}x{chosen.side}"
        print(f"{size:24}" + "{thread_ms:10.2f}{processes_ms:12.2f}{more_ms:8.2f}".format(**row))
    if chosen.json is not None:
        report.save(chosen.json, {"conditions": report.conditions()} | figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
