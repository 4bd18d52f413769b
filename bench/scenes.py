"""The pictures of a comparison: another one in every round, the same for everybody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np

from bench import material
from engine.image import Grey, Rgb

if TYPE_CHECKING:
    from bench.compare import Plan

PROMPTS: Final = (
    "a red apple",
    "a small yellow cat",
    "an old green chair",
    "a white flower",
    "a black bird",
    "a big blue lamp",
    "a cup on a table",
)
SMALL_SHARE: Final = 0.13
"""Of the picture, for the hole of an interactive edit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picture to fill.

    Attributes:
        image: ``.npy`` file of the picture, (side, side, 3).
        mask: ``.npy`` file of the mask, (side, side), 0 and 255.
        prompt: What shall appear.
        seed: Of the noise.
    """

    image: Path
    mask: Path
    prompt: str
    seed: int

    def message(self) -> dict[str, Any]:
        """As it crosses to a peer; see ``bench.peers.job.Item.read``."""
        pictures = {"image": str(self.image), "mask": str(self.mask)}
        return pictures | {"prompt": self.prompt, "seed": self.seed}

    def mask_share(self) -> float:
        """The part of the picture that is filled."""
        mask: Grey = np.load(self.mask)
        return float((mask == 255).mean())


def scenes(plan: Plan, folder: Path) -> list[Scene]:
    """The scene of the warm-up, then one for each round.

    Prompt and seed are new in each. The picture is moved by one more pixel each time, which changes
    all its content and none of the work; in an interactive edit it stays.
    """
    image, mask = pictures(plan)
    mask_file = folder / "mask.npy"
    np.save(mask_file, mask)
    made = []
    for index in range(plan.rounds + 1):
        file = folder / f"image-{index}.npy"
        np.save(file, image if plan.interactive else np.roll(image, index, axis=1))
        lap, place = divmod(index, len(PROMPTS))
        prompt = PROMPTS[place] + " and a tree" * lap
        made.append(Scene(image=file, mask=mask_file, prompt=prompt, seed=plan.seed + index))
    return made


def pictures(plan: Plan) -> tuple[Rgb, Grey]:
    """Picture (side, side, 3) and mask (side, side) of 0 and 255.

    Unless the plan brings its own: the demo's photograph; with its mask, or with a disc in it for
    an interactive edit.
    """
    photo, hole = material.pictures()
    if plan.interactive:
        hole = disc(photo.shape[0], SMALL_SHARE)
    if plan.image is not None and plan.mask is not None:
        photo, hole = plan.image, plan.mask
    side = (plan.size, plan.size)
    if photo.shape[:2] != side:
        photo = np.asarray(cv2.resize(photo, side, interpolation=cv2.INTER_AREA), np.uint8)
    if hole.shape != side:
        hole = np.asarray(cv2.resize(hole, side, interpolation=cv2.INTER_NEAREST), np.uint8)
    return photo, np.where(hole >= 128, 255, 0).astype(np.uint8)


def disc(side: int, share: float) -> Grey:
    """A mask (side, side) with a white disc of that share of it, right of the middle."""
    y, x = np.mgrid[0:side, 0:side]
    radius = side * np.sqrt(share / np.pi)
    inside = (x - 0.55 * side) ** 2 + (y - 0.5 * side) ** 2 <= radius**2
    return np.where(inside, 255, 0).astype(np.uint8)
