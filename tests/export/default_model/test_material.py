"""The training recipe of the default model: words, shards and composites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")
transformers = pytest.importorskip("transformers")

from export.default_model.compose import Composer, ComposeSettings, recoloured  # noqa: E402
from export.default_model.data import (  # noqa: E402
    dominant_hue,
    load_photos,
    load_sprites,
    make_sprite,
    name_of_hue,
)
from export.default_model.pool import Pictures, compose_chunk  # noqa: E402
from export.default_model.vocabulary import (  # noqa: E402
    BACKGROUND_CAPTIONS,
    COLOURS,
    NO_COLOUR,
    NO_NOUN,
    NOUNS,
    STYLES,
    caption,
    with_article,
)
from tests.export.default_model.tiny import SIZE, write_shard  # noqa: E402

pytestmark = pytest.mark.export


class TestVocabulary:
    def test_enough_nouns_of_distinct_names(self) -> None:
        names = [noun.name for noun in NOUNS]
        assert len(set(names)) == len(names) >= 40
        labels = [label for noun in NOUNS for label in noun.labels]
        assert len(set(labels)) == len(labels)

    def test_objects_are_always_named(self) -> None:
        rng = np.random.default_rng(0)
        for noun, entry in enumerate(NOUNS):
            for style in range(len(STYLES)):
                for _ in range(20):
                    said = caption(rng, noun, NO_COLOUR, style)
                    assert any(word in said for word in (entry.name, *entry.synonyms))

    def test_background_is_never_named(self) -> None:
        rng = np.random.default_rng(0)
        said = {caption(rng, NO_NOUN, NO_COLOUR, 0) for _ in range(100)}
        assert said == set(BACKGROUND_CAPTIONS)
        assert "" in said

    def test_colour_is_told(self) -> None:
        rng = np.random.default_rng(0)
        car = [noun.name for noun in NOUNS].index("car")
        said = [caption(rng, car, COLOURS.index("blue"), 0) for _ in range(50)]
        assert all("blue car" in s or "blue automobile" in s for s in said)

    def test_articles(self) -> None:
        assert with_article("owl") == "an owl"
        assert with_article("red owl") == "a red owl"
        assert with_article("cherries", plural=True) == "cherries"


class TestData:
    def test_every_noun_and_some_bystanders(self, shards: Path) -> None:
        sprites = load_sprites(shards, side=SIZE)
        assert {s.noun for s in sprites} == {NO_NOUN, *range(len(NOUNS))}
        assert sum(s.noun == NO_NOUN for s in sprites) == 2
        assert all(max(s.pixels.shape[:2]) == SIZE for s in sprites)

    def test_held_out_photos_are_others(self, shards: Path) -> None:
        assert len(load_photos(shards, short_side=40)) == 8
        assert len(load_photos(shards, short_side=40, held_out=True)) == 1

    def test_missing_shard_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"objects\.json"):
            load_sprites(tmp_path, side=SIZE)

    def test_missing_noun_is_named(self, tmp_path: Path) -> None:
        write_shard(tmp_path, "objects", [{"file": "a.png", "label": "cat", "set": "noto"}], 16)
        with pytest.raises(ValueError, match="dog"):
            load_sprites(tmp_path, side=SIZE)

    def test_colour_of_a_plain_object(self) -> None:
        red = Image.new("RGBA", (20, 20), (220, 20, 20, 255))
        sprite = make_sprite(red, noun=0, style=0, side=16)
        assert COLOURS[sprite.colour] == "red"
        assert name_of_hue(84) == NO_COLOUR


class TestCompose:
    def test_hole_contains_the_object(self, composer: Composer) -> None:
        rng = np.random.default_rng(0)
        seen = 0
        for _ in range(200):
            sample = composer.compose(rng)
            assert sample.image.shape == (SIZE, SIZE, 3)
            assert set(np.unique(sample.mask)) <= {0, 1}
            assert sample.mask.any()
            if sample.noun != NO_NOUN:
                seen += 1
                assert sample.mask[sample.alpha > 0.05].all()
                assert (sample.alpha > 0.05).any()
            else:
                assert not sample.alpha.any()
                assert sample.colour == NO_COLOUR
        assert 110 < seen < 180

    def test_bystanders_stay_outside_the_hole(self, composer: Composer) -> None:
        """One inside would teach the empty prompt to paint objects."""
        rng = np.random.default_rng(1)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, : SIZE // 2] = 1
        plain = np.zeros((SIZE, SIZE, 3), np.float32)
        changed = 0
        for _ in range(100):
            after = composer._add_bystander(rng, plain, mask)
            inside = int((after[mask > 0] > 0).sum())
            outside = int((after[mask == 0] > 0).sum())
            assert inside <= outside
            changed += outside > 0
        assert 20 < changed < 90

    def test_seed_decides(self, composer: Composer) -> None:
        first = compose_chunk(composer, (5, 2), 4)
        again = compose_chunk(composer, (5, 2), 4)
        other = compose_chunk(composer, (5, 3), 4)
        assert np.array_equal(first.images, again.images)
        assert np.array_equal(first.labels, again.labels)
        assert not np.array_equal(first.images, other.images)

    def test_recolouring(self) -> None:
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[..., 0] = pixels[..., 3] = 200
        hue, share = dominant_hue(np.where(pixels == 200, 255, pixels).astype(np.uint8))
        assert share == 1
        blue = recoloured(pixels, hue=hue, colour=COLOURS.index("blue"))
        assert blue[..., 2].min() > 150 > 50 > blue[..., 0].max()
        assert np.array_equal(blue[..., 3], pixels[..., 3])

    def test_wrong_settings_are_named(self) -> None:
        with pytest.raises(ValueError, match="size: 100"):
            ComposeSettings(size=100)
        with pytest.raises(ValueError, match="insertion: 2"):
            ComposeSettings(insertion=2)


def test_pictures_carry_three_labels(composer: Composer) -> None:
    pictures = compose_chunk(composer, (0, 0), 3)
    assert isinstance(pictures, Pictures)
    assert pictures.labels.shape == (3, 3)
