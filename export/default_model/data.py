"""Reads the two shards of training pictures: cut-out objects and photographs.

For: decoded, size-limited arrays that `compose` can paste. A shard is a tar file of pictures beside
a JSON file of rows (`objects.tar` with `objects.json`, `photos.tar` with `photos.json`); every row
names its file and licence. Imports numpy, cv2 and PIL; never torch, never the network.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.default_model.vocabulary import COLOUR_HUES, NO_COLOUR, NO_NOUN, NOUNS, STYLES, Noun

STYLE_OF_SET = {"fluent-emoji-3d": "3d"}
"""Sets of pictures that are not flat drawings, by the `set` field of their rows."""

HELD_OUT_EVERY = 8
"""Every eighth photograph is kept for evaluation."""

BYSTANDER_EVERY = 8
"""Every eighth picture outside the vocabulary is kept as an unnamed object for context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """One cut-out object.

    Attributes:
        pixels: (H, W, 4) uint8, RGBA with colour premultiplied by alpha, longer side `side`.
        noun: Index into `NOUNS`, or `NO_NOUN` for an unnamed bystander.
        style: Index into `STYLES`.
        hue: Dominant hue, 0 to 179 in OpenCV's convention, or -1 where no hue dominates.
        colour: Index into `COLOURS` if the whole object is plainly of one colour, else `NO_COLOUR`.
    """

    pixels: NDArray[np.uint8]
    noun: int
    style: int
    hue: int
    colour: int


def read_shard(directory: Path, name: str) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Yields the rows of a shard, each with its picture (not yet decoded).

    Args:
        directory: Folder that holds `{name}.tar` and `{name}.json`.
        name: "objects" or "photos".

    Yields:
        (row, picture) in the order of the JSON file.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If a row names a picture that the tar file does not hold.
    """
    for path in (directory / f"{name}.json", directory / f"{name}.tar"):
        if not path.is_file():
            raise FileNotFoundError(f"shard file missing: {path}")
    rows = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    with tarfile.open(directory / f"{name}.tar") as tar:
        members = {m.name: m for m in tar.getmembers() if m.isfile()}
        for row in rows:
            member = members.get(row["file"])
            stream = tar.extractfile(member) if member is not None else None
            if stream is None:
                raise ValueError(f"{name}.json: file: {row['file']!r} is not in {name}.tar")
            yield row, Image.open(io.BytesIO(stream.read()))


def resize(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Scales (H, W, C) uint8 by a factor, by area when shrinking and cubic when enlarging."""
    height, width = pixels.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size, interpolation=how), np.uint8)


def dominant_hue(pixels: NDArray[np.uint8]) -> tuple[int, float]:
    """Finds the hue most of an object has.

    Args:
        pixels: (H, W, 4) uint8, premultiplied RGBA.

    Returns:
        The hue (0 to 179, or -1 where the object is colourless) and the share of the object's
        opaque area that lies within 12 of it, is saturated and is not dark.
    """
    hsv = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2HSV)
    opaque = pixels[..., 3] > 200
    vivid = opaque & (hsv[..., 1] > 80) & (hsv[..., 2] > 90)
    if vivid.sum() < 0.1 * max(1, int(opaque.sum())):
        return -1, 0.0
    counts = np.bincount(hsv[..., 0][vivid].ravel(), minlength=180)[:180].astype(np.float64)
    near = np.stack([np.roll(counts, shift) for shift in range(-12, 13)]).sum(axis=0)
    hue = int(np.argmax(near))
    return hue, float(near[hue] / opaque.sum())


def name_of_hue(hue: int) -> int:
    """Returns the index into `COLOURS` of the word for a hue, or `NO_COLOUR` between two words."""
    for index, reference in enumerate(COLOUR_HUES.values()):
        distance = abs((hue - reference + 90) % 180 - 90)
        if distance <= (14 if reference in (58, 108) else 6):
            return index
    return NO_COLOUR


def make_sprite(picture: Image.Image, *, noun: int, style: int, side: int) -> Sprite:
    """Cuts a picture to its visible part and scales its longer side to `side` pixels."""
    rgba = np.array(picture.convert("RGBA"))
    ys, xs = np.nonzero(rgba[..., 3] > 12)
    if len(ys) == 0:
        raise ValueError("picture: every pixel is transparent; a cut-out needs a visible object")
    rgba = rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    # Premultiplied before scaling, so that no fringe of the hidden colour appears at the edge.
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rgba = np.concatenate([np.rint(rgba[..., :3] * alpha).astype(np.uint8), rgba[..., 3:]], axis=2)
    pixels = resize(rgba, side / max(rgba.shape[:2]))
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    hue, share = dominant_hue(pixels)
    colour = name_of_hue(hue) if share > 0.6 else NO_COLOUR
    return Sprite(pixels=pixels, noun=noun, style=style, hue=hue, colour=colour)


def load_sprites(directory: Path, *, nouns: Sequence[Noun] = NOUNS, side: int) -> list[Sprite]:
    """Decodes the pictures of the vocabulary and some bystanders.

    Args:
        directory: Folder of the shards.
        nouns: The vocabulary.
        side: Longer side of each sprite, pixels.

    Returns:
        Sprites in the order of the shard.

    Raises:
        ValueError: If a noun has no picture.
    """
    index = {label: i for i, noun in enumerate(nouns) for label in noun.labels}
    sprites: list[Sprite] = []
    others = 0
    for row, picture in read_shard(directory, "objects"):
        noun = index.get(str(row["label"]).lower(), NO_NOUN)
        if noun == NO_NOUN:
            others += 1
            if others % BYSTANDER_EVERY:
                continue
        style = STYLES.index(STYLE_OF_SET.get(str(row["set"]), "drawing"))
        sprites.append(make_sprite(picture, noun=noun, style=style, side=side))
    missing = sorted(
        {nouns[i].name for i in range(len(nouns))}
        - {nouns[s.noun].name for s in sprites if s.noun >= 0}
    )
    if missing:
        raise ValueError(f"objects.json: label: no picture for {missing}; every noun needs one")
    return sprites


def load_photos(
    directory: Path, *, short_side: int, held_out: bool = False
) -> list[NDArray[np.uint8]]:
    """Decodes the photographs.

    Args:
        directory: Folder of the shards.
        short_side: Shorter side after scaling, pixels.
        held_out: Return the pictures kept for evaluation, not those for training.

    Returns:
        (H, W, 3) uint8 RGB arrays.
    """
    photos = []
    for number, (_, picture) in enumerate(read_shard(directory, "photos")):
        if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) != held_out:
            continue
        rgb = np.array(picture.convert("RGB"))
        photos.append(resize(rgb, short_side / min(rgb.shape[:2])))
    if not photos:
        raise ValueError(
            f"photos.json: no {'held-out' if held_out else 'training'} photograph;"
            f" at least {HELD_OUT_EVERY} rows are needed for both kinds"
        )
    return photos
