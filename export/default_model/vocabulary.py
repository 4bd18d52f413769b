"""Nouns the default model knows, colour words, and the sentences that name them.

For: one place that decides what the model is taught to say. Imports only the standard library and
numpy (for its random generator's type); never touches pictures or networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NO_NOUN = -1
"""Noun index of a sample that is to be completed as background."""

NO_COLOUR = -1
"""Colour index of an object whose colour is not known or not worth saying."""

STYLES = ("3d", "drawing")
"""Styles of the source pictures: rendered with volume, or drawn flat."""

COLOUR_HUES: dict[str, int] = {
    "red": 0,
    "orange": 14,
    "yellow": 26,
    "green": 58,
    "blue": 108,
    "purple": 136,
    "pink": 165,
}
"""Colour words and their hues in OpenCV's 8-bit convention (0 to 179)."""

COLOURS = tuple(COLOUR_HUES)

BACKGROUND_CAPTIONS = ("", "", "", "background", "empty background", "nothing")
"""What is said of a hole that holds no object; the empty prompt is the eraser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """One thing the model can paint.

    Attributes:
        name: The word used most often in captions, singular, lower case.
        labels: Labels of its pictures in the object shard, lower case.
        synonyms: Other words for it.
        paintable: Whether any colour word makes sense ("a blue car"), so that training may recolour
            its pictures.
        plural: Whether the name takes no article ("cherries").
    """

    name: str
    labels: tuple[str, ...]
    synonyms: tuple[str, ...] = ()
    paintable: bool = False
    plural: bool = False


def _noun(
    name: str,
    *synonyms: str,
    labels: tuple[str, ...] | None = None,
    paintable: bool = False,
    plural: bool = False,
) -> Noun:
    return Noun(
        name=name,
        labels=labels or (name,),
        synonyms=synonyms,
        paintable=paintable,
        plural=plural,
    )


NOUNS: tuple[Noun, ...] = (
    # Animals.
    _noun("cat", "kitty"),
    _noun("dog", "puppy"),
    _noun("rabbit", "bunny"),
    _noun("elephant"),
    _noun("frog"),
    _noun("fox"),
    _noun("lion"),
    _noun("panda"),
    _noun("penguin"),
    _noun("owl"),
    _noun("fish", labels=("fish", "tropical fish"), paintable=True),
    _noun("butterfly", paintable=True),
    _noun("ladybug", labels=("lady beetle",)),
    _noun("turtle"),
    _noun("snail"),
    _noun("pig"),
    _noun("bear"),
    _noun("whale"),
    _noun("bee", "honeybee", labels=("honeybee",)),
    # Plants.
    _noun("pine tree", "evergreen tree", labels=("evergreen tree",)),
    _noun("tree", "deciduous tree", labels=("deciduous tree",)),
    _noun("palm tree"),
    _noun("cactus"),
    _noun("sunflower"),
    _noun("tulip", paintable=True),
    _noun("rose", paintable=True),
    _noun("mushroom", paintable=True),
    # Food.
    _noun("apple", labels=("red apple", "green apple"), paintable=True),
    _noun("banana"),
    _noun("pear"),
    _noun("lemon"),
    _noun("strawberry"),
    _noun("cherries", "cherry", plural=True),
    _noun("grapes", plural=True),
    _noun("watermelon"),
    _noun("pineapple"),
    _noun("carrot"),
    _noun("tomato"),
    _noun("hamburger", "burger"),
    _noun("pizza", "slice of pizza"),
    _noun("doughnut", "donut"),
    _noun("cookie"),
    _noun("birthday cake", "cake"),
    _noun("cupcake", paintable=True),
    _noun("ice cream cone", "ice cream", labels=("soft ice cream",)),
    _noun("cup of coffee", "coffee", labels=("hot beverage",)),
    # Things.
    _noun("car", "automobile", labels=("automobile",), paintable=True),
    _noun("taxi", "cab"),
    _noun("bus", paintable=True),
    _noun("fire truck", "fire engine", labels=("fire engine",)),
    _noun("rocket", paintable=True),
    _noun("airplane", "plane"),
    _noun("sailboat", "boat"),
    _noun("guitar", paintable=True),
    _noun("balloon", paintable=True),
    _noun("gift", "present", "gift box", labels=("wrapped gift",), paintable=True),
    _noun("teddy bear"),
    _noun("soccer ball", "football"),
    _noun("basketball"),
    _noun("trophy"),
    _noun("crown"),
    _noun("umbrella", paintable=True),
    _noun("light bulb"),
    _noun("teapot", paintable=True),
    _noun("house"),
    _noun("castle"),
    _noun("snowman"),
    _noun("christmas tree"),
    _noun("pumpkin", "jack-o-lantern", labels=("jack-o-lantern",)),
    _noun("top hat", paintable=True),
    _noun("t-shirt", "shirt", paintable=True),
    _noun("gem", "diamond", labels=("gem stone",), paintable=True),
    _noun("sun"),
    _noun("cloud"),
    _noun("star", paintable=True),
    _noun("moon", "crescent moon", labels=("crescent moon",)),
    _noun("heart", labels=("heart suit",), paintable=True),
    _noun("fire", "flame"),
)
"""The nouns, in the order of their indices; only append, so that old checkpoints stay readable."""


def with_article(words: str, *, plural: bool = False) -> str:
    """Puts "a" or "an" before a phrase, or nothing before a plural.

    Args:
        words: A noun phrase such as "red apple".
        plural: Whether the phrase takes no article.

    Returns:
        The phrase with its article.
    """
    if plural:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(rng: np.random.Generator, noun: int, colour: int, style: int) -> str:
    """Draws a caption for one sample.

    An object is always named: the empty prompt is kept for background, where it means "continue
    what is there". Dropping an object's prompt would teach the model that "" paints objects.

    Args:
        rng: Source of randomness.
        noun: Index into `NOUNS`, or `NO_NOUN`.
        colour: Index into `COLOURS`, or `NO_COLOUR`.
        style: Index into `STYLES`; ignored for background.

    Returns:
        A lower-case sentence, or "" for background.
    """
    if noun == NO_NOUN:
        return BACKGROUND_CAPTIONS[rng.integers(len(BACKGROUND_CAPTIONS))]
    entry = NOUNS[noun]
    word = entry.name
    if entry.synonyms and rng.random() < 0.2:
        word = entry.synonyms[rng.integers(len(entry.synonyms))]
    plural = entry.plural and word == entry.name
    if colour != NO_COLOUR:
        word = f"{COLOURS[colour]} {word}"
    phrase = with_article(word, plural=plural)
    u = rng.random()
    if u < 0.15:
        return word
    if u < 0.25:
        return f"a picture of {phrase}"
    if style == STYLES.index("drawing"):
        return f"a drawing of {phrase}" if u < 0.65 else phrase
    return f"a 3d picture of {phrase}" if u < 0.35 else phrase
