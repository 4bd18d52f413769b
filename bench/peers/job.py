"""What a peer is asked for: the job that stays the same, and the picture that changes."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is constant in a comparison.

    Attributes:
        checkpoint: Folder of the checkpoint in the diffusers layout.
        model: Folder of what the peer opens: the checkpoint, or what it made of it.
        width: Of the pictures in pixels.
        height: Of the pictures in pixels.
        steps: Denoising steps.
        scheduler: Edgefill's name of it.
        scheduler_class: diffusers' class.
        scheduler_options: Settings of that class beyond the checkpoint's.
        guidance: Guidance scale; 1: one row per UNet call.
        threads: Of the processor, for each network.
        options: The peer's own; see ``bench.peers.catalogue``.
    """

    checkpoint: str
    model: str
    width: int
    height: int
    steps: int
    scheduler: str
    scheduler_class: str
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    guidance: float
    threads: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One picture to fill.

    Attributes:
        image: (height, width, 3) RGB.
        mask: (height, width); 255 is filled, 0 is kept.
        prompt: What shall appear.
        seed: Of the noise.
    """

    image: Pixels
    mask: Pixels
    prompt: str
    seed: int

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Item:
        """Read it as it crosses to the peer: pictures as paths of ``.npy`` files."""
        image, mask = (np.load(Path(message[name])) for name in ("image", "mask"))
        return cls(image=image, mask=mask, prompt=message["prompt"], seed=message["seed"])


class Runner(abc.ABC):
    """A peer with its model open.

    Attributes:
        packages: Distributions whose versions belong to the result.
    """

    packages: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def __init__(self, job: Job) -> None:
        """Open the model; may take minutes."""

    @abc.abstractmethod
    def paint(self, item: Item) -> Pixels:
        """The filled picture (height, width, 3), from arrays in memory to an array in memory."""

    def paint_with_shared_noise(self, item: Item) -> Pixels:
        """The same with the noise that diffusers would take."""
        return self.paint(item)

    @classmethod
    def prepare(cls, job: Job, output: Path) -> None:
        """Make what the peer opens from ``job.checkpoint``, once, in the folder ``output``."""
        raise NotImplementedError(f"{cls.__module__} opens the checkpoint itself")
