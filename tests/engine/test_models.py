"""Scaling, sampling and layout of the networks' inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import Bundle
from engine.bundle import Latents, TensorSpec
from engine.models import Preview, Unet, UnetRow, VaeDecoder, VaeEncoder, to_nchw, to_rgb
from engine.noise import Generator
from engine.sessions import open_session, select


class Canned:
    """A session that answers what it was told and keeps what it was asked."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, answer: npt.NDArray[np.float32]) -> None:
        self.answer = answer
        self.asked: Mapping[str, npt.NDArray[Any]] = {}

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
        self.asked = {name: array.copy() for name, array in feeds.items()}
        return (self.answer,)

    def close(self) -> None:
        pass


def test_pixels_to_planes_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    picture = np.stack([levels, levels[::-1], levels], -1)[None]
    planes = to_nchw(picture)
    assert planes.shape == (1, 3, 1, 256)
    assert planes.min() == -1.0
    assert planes.max() == 1.0
    assert np.array_equal(to_rgb(planes[0]), picture)
    assert to_rgb(np.full((3, 1, 1), 7.0, np.float32)).max() == 255


def test_moments_are_sampled_as_diffusers_does() -> None:
    moments = np.concatenate(
        [np.full((1, 4, 8, 8), 0.5), np.full((1, 4, 8, 8), 2 * np.log(3.0))], 1
    ).astype(np.float32)
    encoder = VaeEncoder(Canned(moments), Latents(channels=4, scaling_factor=0.1, shift_factor=0.2))
    image = np.zeros((1, 3, 64, 64), np.float32)
    np.testing.assert_allclose(encoder.latents(encoder.moments(image), None), 0.03, rtol=1e-6)
    noise = Generator(1).normal((1, 4, 8, 8))
    sampled = encoder.latents(encoder.moments(image), Generator(1).normal)
    np.testing.assert_allclose(sampled, (0.5 + 3 * noise - 0.2) * 0.1, rtol=1e-5, atol=1e-6)


def test_an_encoder_without_variance_draws_nothing() -> None:
    encoder = VaeEncoder(
        Canned(np.ones((1, 4, 8, 8), np.float32)), Latents(channels=4, scaling_factor=2.0)
    )

    def never(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        raise AssertionError("nothing is to be drawn")

    moments = encoder.moments(np.zeros((1, 3, 64, 64), np.float32))
    assert (encoder.latents(moments, never) == 2.0).all()


def test_the_decoder_undoes_the_scaling() -> None:
    session = Canned(np.zeros((1, 3, 64, 64), np.float32))
    decoder = VaeDecoder(session, Latents(channels=4, scaling_factor=0.5, shift_factor=0.1))
    decoder(np.ones((1, 4, 8, 8), np.float32))
    np.testing.assert_allclose(session.asked["latents"], 2.1, rtol=1e-6)


def test_a_row_does_not_feel_its_neighbours(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    session = open_session(select("cpu"), bundle.path, bundle.components["unet"], threads=1)
    unet = Unet(session, channels=9)
    rng = np.random.default_rng(0)
    rows = [
        UnetRow(
            latents=rng.standard_normal((4, 8, 8)).astype(np.float32),
            timestep=float(100 * i),
            told={"encoder_hidden_states": rng.standard_normal((8, 16)).astype(np.float32)},
            conditioning=rng.standard_normal((5, 8, 8)).astype(np.float32),
        )
        for i in range(4)
    ]
    together = unet(rows).copy()
    for row, expected in zip(rows, together, strict=True):
        np.testing.assert_allclose(unet([row])[0], expected, atol=1e-6)


def test_preview() -> None:
    factors = ((0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5), (0.0,) * 3, (0.1, 0.1, 0.1))
    preview = Preview(Latents(channels=4, scaling_factor=1.0, rgb_factors=factors))
    latents = np.zeros((4, 2, 3), np.float32)
    latents[0] = 1.0
    picture = preview(latents)
    assert picture.shape == (2, 3, 3)
    assert picture[0, 0].tolist() == [204, 140, 140]
    assert Preview(Latents(channels=4, scaling_factor=1.0))(latents).shape == (2, 3, 3)
