"""One picture through an engine, from PNG to PNG, and the seconds of every stage.

Every picture differs from every other in its pixels, its prompt and its seed, so that no cache
answers for a network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bench import material
from bench.probe import Probe, Run
from engine import Engine, InpaintRequest, InpaintResult
from engine import mask as masks
from engine.canvas import plan
from engine.image import Grey, Rgb, decode_mask, decode_picture, encode_png

NETWORKS: Final = ("text_encoder", "vae_encoder", "unet", "vae_decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture: seconds per stage, in order, and the runs of the networks.

    ``outside_networks_arrays`` is ``total_arrays``, from the request to its result, less the runs
    of the networks; ``outside_networks_png`` is the same with both pictures decoded and one
    encoded.
    """

    stages: dict[str, float]
    runs: list[Run]
    result: InpaintResult


def sample(
    engine: Engine, probe: Probe, i: int, fields: Mapping[str, Any] = MappingProxyType({})
) -> Sample:
    """Make picture ``i``, with more fields of ``InpaintRequest``.

    Raises:
        EngineError: When it cannot be made.
    """
    sent = encode_png(fresh(i)), encode_png(_three_channels())
    probe.taken()
    clock: dict[str, float] = {}
    with _stopwatch(clock, "total_png"):
        with _stopwatch(clock, "decode_png"):
            image, mask = decode_picture(sent[0]), decode_mask(sent[1])
        request = InpaintRequest(
            image=image, mask=mask, prompt=f"a red apple {i}", seed=i, **fields
        )
        with _stopwatch(clock, "total_arrays"):
            result = engine.inpaint(request)
        with _stopwatch(clock, "encode_png"):
            encode_png(result.images[0])
    with _stopwatch(clock, "mask_alone"):
        _mask_alone(engine, mask)
    runs = probe.taken()
    steps = [run.seconds for run in runs if run.network == "unet"]
    names = [*NETWORKS, *sorted({run.network for run in runs} - set(NETWORKS))]
    spent = {name: sum(run.seconds for run in runs if run.network == name) for name in names}
    within = sum(run.seconds for run in runs)
    stages = {
        "decode_png": clock["decode_png"],
        "mask_alone": clock["mask_alone"],
        "prepare": result.timings.prepare,
        **spent,
        **{f"unet_step_{n}": seconds for n, seconds in enumerate(steps, start=1)},
        "paste": result.timings.paste,
        "encode_png": clock["encode_png"],
        "total_arrays": clock["total_arrays"],
        "total_png": clock["total_png"],
        "outside_networks_arrays": clock["total_arrays"] - within,
        "outside_networks_png": clock["total_png"] - within,
    }
    return Sample(stages=stages, runs=runs, result=result)


def fresh(i: int) -> Rgb:
    """The demo's photograph, (512, 512, 3), as picture ``i``: one channel's lowest bits changed."""
    photo = _pictures()[0].copy()
    photo[i % len(photo), :, i % 3] ^= 1 + i % 7
    return photo


def hole() -> Grey:
    """The demo's mask, (512, 512)."""
    return _pictures()[1]


@cache
def _pictures() -> tuple[Rgb, Grey]:
    return material.pictures()


def _three_channels() -> Rgb:
    return np.repeat(hole()[..., None], 3, axis=2)


def _mask_alone(engine: Engine, mask: Grey) -> None:
    """What is done to a mask before the networks see it; ``prepare`` holds this too."""
    height, width = mask.shape
    binary = masks.binarise(mask, width=width, height=height)
    geometry = plan(binary, region="auto", defaults=engine.bundle.defaults, reference=False)
    masks.to_latents(geometry.mask_in(binary))


@contextmanager
def _stopwatch(clock: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - begin
