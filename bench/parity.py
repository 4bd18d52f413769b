"""What a faster way costs: the same pictures at the same seeds, made in several ways by turns.

Every way is compared with the first: its time round by round, and its pictures by PSNR, largest
difference and SSIM. A generated picture that differs is not for that a worse one; the figures say
how far it is the same. Nothing is cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from bench.quality import Difference, difference, summary
from bench.report import median
from bench.sampling import fresh, hole
from bench.variants import Variant
from engine import Engine, InpaintRequest
from engine.image import Grey, Rgb

PROMPTS: Final = ("a red apple", "a sunflower", "")


def measure(
    *,
    bundle: Path | None,
    variants: Sequence[Variant],
    device: str,
    rounds: int,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The rows of the variants.

    Args:
        bundle: Folder of the bundle of those that name none; the default bundle where None.
        variants: At least two, of different names; the first is what the others are compared with.
        device: See ``Engine.open``.
        rounds: How often each picture is made in every way, after a round to warm up. The pixels
            differ from round to round, and the order of the ways turns.
        tell: Called with what is being done.

    Raises:
        EngineError: When a bundle cannot be opened, or a request does not fit it.
    """
    first, *others = variants
    taken: dict[str, list[float]] = {variant.name: [] for variant in variants}
    apart: dict[str, list[Difference]] = {variant.name: [] for variant in others}
    with ExitStack() as stack:
        engines = {
            path: stack.enter_context(Engine.open(path, device=device, cache_bytes=0))
            for path in dict.fromkeys(variant.bundle or bundle for variant in variants)
        }
        for i in range(1 + rounds):
            tell(f"parity: round {i} of {rounds}" if i else "parity: warm-up")
            pictures: dict[str, list[Rgb]] = {}
            turn = i % len(variants)
            for variant in (*variants[turn:], *variants[:turn]):
                engine = engines[variant.bundle or bundle]
                seconds, pictures[variant.name] = _made(engine, variant, i)
                if i:
                    taken[variant.name].append(seconds)
            for variant in others if i else ():
                for one, other, mask in zip(
                    pictures[first.name], pictures[variant.name], _masks(), strict=True
                ):
                    apart[variant.name].append(difference(one, other, mask))
        opened = engines[first.bundle or bundle]
        made_by = {
            "bundle": opened.bundle.path.name,
            "device": opened.device.name,
            "compared_with": first.name,
        }
    rows: dict[str, Any] = {first.name: _time(taken[first.name])}
    for variant in others:
        pairs = zip(taken[first.name], taken[variant.name], strict=True)
        faster = {"times_faster": round(median([a / b for a, b in pairs]), 3)}
        rows[variant.name] = _time(taken[variant.name]) | faster | summary(apart[variant.name])
    return {"made_by": made_by, "variants": rows}


def _made(engine: Engine, variant: Variant, i: int) -> tuple[float, list[Rgb]]:
    """All pictures of round ``i`` one after the other, and the seconds of one on average."""
    requests = [
        InpaintRequest(image=fresh(i), mask=mask, prompt=prompt, seed=n, **dict(variant.request))
        for n, (mask, prompt) in enumerate(zip(_masks(), PROMPTS, strict=True))
    ]
    begin = time.perf_counter()
    pictures = [engine.inpaint(request).images[0] for request in requests]
    return (time.perf_counter() - begin) / len(requests), pictures


def _masks() -> Iterator[Grey]:
    """The demo's own, a box, and a thin stroke; each (512, 512)."""
    yield hole()
    box, stroke = np.zeros_like(hole()), np.zeros_like(hole())
    box[180:330, 200:380] = 255
    yield box
    cv2.line(stroke, (90, 120), (400, 300), 255, 6)
    yield stroke


def _time(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median_ms": round(median(seconds) * 1e3, 1)}
