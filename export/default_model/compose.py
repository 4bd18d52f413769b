"""Random composites: a background, perhaps an object, and a hole.

For: unlimited training samples from a few thousand cut-outs. Everything random comes from the
generator passed in, so a seed gives the same composites anywhere. Imports numpy and cv2; never
torch, never files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from export.default_model.backdrop import Backdrops
from export.default_model.data import Sprite
from export.default_model.hole import free_mask, mask_around
from export.default_model.vocabulary import COLOUR_HUES, COLOURS, NO_COLOUR, NO_NOUN, NOUNS, STYLES

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

BYSTANDER_HIDDEN_MAX = 0.35
"""An unnamed object stays only if the hole hides no more of it than this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeSettings:
    """How composites are made.

    Attributes:
        size: Width and height of a composite, pixels; a multiple of 8.
        insertion: Share of samples whose hole holds a named object.
        bystander: Share of samples with an unnamed object that stays.
        rendered: Share of insertions that use a picture of the "3d" style where there is one.
        recolour: Share of the insertions of paintable nouns that are given another colour.
        say_colour: Share of the other insertions that tell the object's own colour if it has one.
    """

    size: int = 128
    insertion: float = 0.72
    bystander: float = 0.15
    rendered: float = 0.6
    recolour: float = 0.4
    say_colour: float = 0.3

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 8:
            raise ValueError(f"size: {self.size}; a multiple of 8, 32 or more, is needed")
        for name in ("insertion", "bystander", "rendered", "recolour", "say_colour"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {value}; a share between 0 and 1 is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """One sample, S being the size of the settings.

    Attributes:
        image: (S, S, 3) uint8 RGB, the object in place.
        mask: (S, S) uint8, 1 in the hole.
        alpha: (S, S) float32, the named object's coverage; zero everywhere for background.
        noun: Index into `NOUNS`, or `NO_NOUN`.
        colour: Index into `COLOURS`, or `NO_COLOUR`.
        style: Index into `STYLES`.
    """

    image: Image
    mask: Image
    alpha: Floats
    noun: int
    colour: int
    style: int


def recoloured(pixels: Image, *, hue: int, colour: int) -> Image:
    """Turns the dominant hue of a sprite to a colour word's hue.

    Premultiplied pixels keep their hue and saturation, so no division by alpha is needed.

    Args:
        pixels: (H, W, 4) uint8, premultiplied RGBA.
        hue: The sprite's dominant hue, 0 to 179.
        colour: Index into `COLOURS`.

    Returns:
        A new array of the same shape.
    """
    hsv = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2HSV).astype(np.int16)
    distance = (hsv[..., 0] - hue + 90) % 180 - 90
    chosen = (np.abs(distance) <= 24) & (hsv[..., 1] > 40)
    # The spread of hues is halved: shading survives, neighbouring colour words are not reached.
    turned = (COLOUR_HUES[COLOURS[colour]] + distance // 2) % 180
    hsv[..., 0] = np.where(chosen, turned, hsv[..., 0])
    if COLOURS[colour] == "pink":
        hsv[..., 1] = np.where(chosen, hsv[..., 1] * 5 // 8, hsv[..., 1])
    rgb = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return np.dstack([np.minimum(rgb, pixels[..., 3:]), pixels[..., 3]])


def over(image: Floats, layer: Floats) -> Floats:
    """Lays a premultiplied (H, W, 4) layer over an (H, W, 3) image, both float32."""
    return np.asarray(image * (1 - layer[..., 3:]) + layer[..., :3], np.float32)


class Composer:
    """Makes composites from decoded sprites and photographs."""

    def __init__(
        self, sprites: Sequence[Sprite], photos: Sequence[Image], settings: ComposeSettings
    ) -> None:
        """Groups the material by noun and style.

        Args:
            sprites: Cut-outs; every noun of the vocabulary has at least one.
            photos: (H, W, 3) uint8 pictures, each side at least the size of a composite.
            settings: How to compose.

        Raises:
            ValueError: If a noun has no sprite or a photograph is too small.
        """
        self.settings = settings
        self.backdrops = Backdrops(photos, settings.size)
        self.sprites = list(sprites)
        self.of_noun: list[list[list[Sprite]]] = [[[] for _ in STYLES] for _ in NOUNS]
        for sprite in self.sprites:
            if sprite.noun != NO_NOUN:
                self.of_noun[sprite.noun][sprite.style].append(sprite)
        empty = [NOUNS[i].name for i, styles in enumerate(self.of_noun) if not any(styles)]
        if empty:
            raise ValueError(f"sprites: none for {empty}; every noun needs one")
        yy, xx = np.mgrid[0 : settings.size, 0 : settings.size].astype(np.float32)
        self.yy: Floats = yy
        self.xx: Floats = xx

    def compose(self, rng: np.random.Generator) -> Composite:
        """Makes one sample.

        Args:
            rng: Source of all randomness.

        Returns:
            A composite with a non-empty hole.
        """
        cfg = self.settings
        image = self.backdrops.draw(rng)
        alpha = np.zeros((cfg.size, cfg.size), np.float32)
        noun, colour, style = NO_NOUN, NO_COLOUR, 0
        layer: Floats | None = None
        u = rng.random()
        if u < cfg.insertion:
            sprite, pixels, colour = self._choose(rng)
            noun, style = sprite.noun, sprite.style
            if rng.random() < 0.5:
                pixels = pixels[:, ::-1]
            side, centre = self._place(rng, pixels)
            layer = self._layer(pixels, centre, side)
            alpha = layer[..., 3]
            mask = mask_around(rng, alpha)
            if rng.random() < 0.35:
                self._shadow(rng, image, pixels, centre, side)
        elif u < cfg.insertion + (1 - cfg.insertion) / 2:
            # A hole like an object's with nothing in it: a hole's shape must not mean "object".
            pixels = self.sprites[rng.integers(len(self.sprites))].pixels
            side, centre = self._place(rng, pixels)
            mask = mask_around(rng, self._layer(pixels, centre, side)[..., 3])
        else:
            mask = free_mask(rng, cfg.size)
        if rng.random() < cfg.bystander:
            image = self._add_bystander(rng, image, mask)
        if layer is not None:
            image = over(image, layer)
        return Composite(
            image=np.clip(image, 0, 255).astype(np.uint8),
            mask=mask,
            alpha=alpha,
            noun=noun,
            colour=colour,
            style=style,
        )

    def _choose(self, rng: np.random.Generator) -> tuple[Sprite, Image, int]:
        """Draws a sprite; returns it with its pixels and the colour to be told."""
        cfg = self.settings
        styles = self.of_noun[rng.integers(len(NOUNS))]
        first = 0 if rng.random() < cfg.rendered else 1
        group = styles[first] or styles[1 - first]
        sprite = group[rng.integers(len(group))]
        if NOUNS[sprite.noun].paintable and sprite.hue >= 0 and rng.random() < cfg.recolour:
            colour = int(rng.integers(len(COLOURS)))
            return sprite, recoloured(sprite.pixels, hue=sprite.hue, colour=colour), colour
        told = rng.random() < cfg.say_colour
        return sprite, sprite.pixels, sprite.colour if told else NO_COLOUR

    def _place(self, rng: np.random.Generator, pixels: Image) -> tuple[float, Floats]:
        """Draws the longer side and the centre (y, x) of an object, wholly inside the picture."""
        size = self.settings.size
        side = rng.uniform(0.4, 0.88) * size
        extent = np.array(pixels.shape[:2]) * (side / max(pixels.shape[:2]))
        centre = rng.uniform(extent / 2, size - extent / 2)
        if rng.random() < 0.5:
            centre = size / 2 + (centre - size / 2) * 0.4
        return side, centre.astype(np.float32)

    def _layer(self, pixels: Image, centre: Floats, side: float) -> Floats:
        """Places a sprite on an empty canvas: (S, S, 4) float32, colour 0 to 255, alpha 0 to 1."""
        size = self.settings.size
        scale = side / max(pixels.shape[:2])
        extent = (max(2, round(pixels.shape[1] * scale)), max(2, round(pixels.shape[0] * scale)))
        small = cv2.resize(np.ascontiguousarray(pixels), extent, interpolation=cv2.INTER_AREA)
        height, width = small.shape[:2]
        y, x = round(float(centre[0]) - height / 2), round(float(centre[1]) - width / 2)
        top, left = max(0, y), max(0, x)
        bottom, right = min(size, y + height), min(size, x + width)
        layer = np.zeros((size, size, 4), np.float32)
        if bottom > top and right > left:
            layer[top:bottom, left:right] = small[top - y : bottom - y, left - x : right - x]
            layer[..., 3] /= 255
        return layer

    def _add_bystander(self, rng: np.random.Generator, image: Floats, mask: Image) -> Floats:
        """Adds an unnamed object, unless the hole would hide much of it.

        A bystander inside the hole would teach the empty prompt to paint objects.
        """
        size = self.settings.size
        sprite = self.sprites[rng.integers(len(self.sprites))]
        centre = rng.uniform(0.08 * size, 0.92 * size, 2).astype(np.float32)
        layer = self._layer(sprite.pixels, centre, rng.uniform(0.2, 0.5) * size)
        hidden = float((layer[..., 3] * mask).sum()) / (float(layer[..., 3].sum()) + 1e-6)
        return image if hidden > BYSTANDER_HIDDEN_MAX else over(image, layer)

    def _shadow(
        self, rng: np.random.Generator, image: Floats, pixels: Image, centre: Floats, side: float
    ) -> None:
        """Darkens `image` in place under the object's foot."""
        scale = side / max(pixels.shape[:2])
        height, width = pixels.shape[0] * scale, pixels.shape[1] * scale
        dx = (self.xx - centre[1]) / (0.42 * width)
        dy = (self.yy - centre[0] - 0.47 * height) / (0.07 * height + 1)
        image *= (1 - rng.uniform(0.1, 0.35) * np.exp(-(dx * dx + dy * dy)))[..., None]
