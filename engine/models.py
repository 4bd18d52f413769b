"""The networks as the engine speaks of them; tensor names, scaling and casts live here only.

Shapes: pictures (B, 3, H, W) float32 in [-1, 1]; latents (B, C, h, w) float32 with h = H // 8 and
w = W // 8, scaled as the UNet sees them; embeddings (L, D) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.bundle import COMPONENTS, Bundle, Component, Latents
from engine.sessions.base import Session

Floats = npt.NDArray[np.float32]
Rgb = npt.NDArray[np.uint8]

_KEPT_SHAPES: Final = 8
_LOG_VARIANCE: Final = (-30.0, 20.0)
"""Bounds of the encoder's log-variance, as diffusers' DiagonalGaussianDistribution sets them."""


def to_nchw(image: Rgb) -> Floats:
    """(H, W, 3) uint8 to (1, 3, H, W) float32 in [-1, 1]."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
    planes *= np.float32(1 / 127.5)
    planes -= np.float32(1.0)
    return planes


def to_rgb(planes: Floats) -> Rgb:
    """(3, H, W) float32 in [-1, 1] to (H, W, 3) uint8, clipped and rounded to nearest."""
    levels = np.rint(np.clip(planes * np.float32(127.5) + np.float32(127.5), 0, 255))
    return np.ascontiguousarray(levels.transpose(1, 2, 0), dtype=np.uint8)


class TextEncoder:
    """Token ids to prompt embeddings."""

    def __init__(self, session: Session, component: Component) -> None:
        self._session = session
        tokens = component.inputs[0].shape[1]
        assert isinstance(tokens, int)
        self.tokens: Final = tokens
        """Length of every prompt in tokens, L."""

    def __call__(self, input_ids: npt.NDArray[np.int64]) -> Floats:
        """(L,) token ids to (L, D) embeddings."""
        (hidden,) = self._session.run({"input_ids": input_ids[None]})
        return np.array(hidden[0], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnetRow:
    """One row of a UNet call: one picture at one denoising step.

    Attributes:
        latents: (C, h, w), already multiplied by the schedule's input scale.
        timestep: What the UNet is told.
        embeddings: (L, D).
        conditioning: (C + 1, h, w): the mask, then the masked picture's latents; None for a UNet
            without inpainting channels.
    """

    latents: Floats
    timestep: float
    embeddings: Floats
    conditioning: Floats | None


class Unet:
    """The denoiser. Rows of one call may stand at different steps of different requests."""

    def __init__(self, session: Session, *, channels: int) -> None:
        self._session = session
        self._channels = channels
        self._feeds: dict[tuple[int, ...], tuple[Floats, Floats, Floats]] = {}

    def __call__(self, rows: Sequence[UnetRow]) -> Floats:
        """Predict for every row; all rows have the same latent shape and prompt length.

        Returns:
            (B, C, h, w), the session's own buffer, overwritten by the next call.
        """
        sample, timestep, embeddings = self._buffers(len(rows), rows[0])
        for i, row in enumerate(rows):
            split = len(row.latents)
            sample[i, :split] = row.latents
            if row.conditioning is not None:
                sample[i, split:] = row.conditioning
            timestep[i] = row.timestep
            embeddings[i] = row.embeddings
        (noise_pred,) = self._session.run(
            {"sample": sample, "timestep": timestep, "encoder_hidden_states": embeddings}
        )
        return noise_pred

    def _buffers(self, batch: int, row: UnetRow) -> tuple[Floats, Floats, Floats]:
        plane, text = row.latents.shape[1:], row.embeddings.shape
        key = (batch, *plane, *text)
        feeds = self._feeds.pop(key, None)
        if feeds is None:
            feeds = (
                np.empty((batch, self._channels, *plane), np.float32),
                np.empty(batch, np.float32),
                np.empty((batch, *text), np.float32),
            )
        self._feeds[key] = feeds  # the shapes used last are kept
        if len(self._feeds) > _KEPT_SHAPES:
            del self._feeds[next(iter(self._feeds))]
        return feeds


class VaeEncoder:
    """Pictures to latents."""

    def __init__(self, session: Session, latents: Latents) -> None:
        self._session = session
        self._latents = latents

    def __call__(self, image: Floats, draw: Callable[[tuple[int, ...]], Floats] | None) -> Floats:
        """(1, 3, H, W) to (1, C, h, w).

        Args:
            image: The picture in [-1, 1].
            draw: Draws normal noise of a shape, to sample the latents as diffusers does; None
                takes their mean. An encoder without variance draws nothing.
        """
        (out,) = self._session.run({"image": image})
        channels = self._latents.channels
        mean = out[:, :channels]
        if out.shape[1] == 2 * channels and draw is not None:
            log_variance = np.clip(out[:, channels:], *_LOG_VARIANCE)
            mean = mean + np.exp(np.float32(0.5) * log_variance) * draw(mean.shape)
        scale, shift = self._latents.scaling_factor, self._latents.shift_factor
        return np.asarray((mean - np.float32(shift)) * np.float32(scale), np.float32)


class VaeDecoder:
    """Latents to pictures."""

    def __init__(self, session: Session, latents: Latents) -> None:
        self._session = session
        self._latents = latents

    def __call__(self, latents: Floats) -> Floats:
        """(1, C, h, w) to (1, 3, H, W), the session's own buffer."""
        scale, shift = self._latents.scaling_factor, self._latents.shift_factor
        raw = latents / np.float32(scale) + np.float32(shift)
        (image,) = self._session.run({"latents": np.ascontiguousarray(raw, np.float32)})
        return image


class Preview:
    """A small picture of latents under way, by the bundle's linear map; costs no network run."""

    def __init__(self, latents: Latents) -> None:
        self._factors = np.asarray(latents.rgb_factors, np.float32)

    def __call__(self, latents: Floats) -> Rgb:
        """(C, h, w) to (h, w, 3) uint8; grey where the bundle has no map."""
        if not len(self._factors):
            return np.full((*latents.shape[1:], 3), 128, np.uint8)
        colour = np.tensordot(self._factors[:-1].T, latents, axes=1)
        return to_rgb(colour + self._factors[-1][:, None, None])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Models:
    """The networks of one bundle, opened."""

    text_encoder: TextEncoder
    unet: Unet
    vae_encoder: VaeEncoder
    vae_decoder: VaeDecoder
    preview: Preview
    sessions: tuple[Session, ...]

    @classmethod
    def open(cls, bundle: Bundle, open_session: Callable[[Component], Session]) -> Models:
        """Open every network of a bundle with the given opener."""
        text, unet, encoder, decoder = (
            open_session(bundle.components[name]) for name in COMPONENTS
        )
        return cls(
            text_encoder=TextEncoder(text, bundle.components["text_encoder"]),
            unet=Unet(unet, channels=bundle.unet_channels),
            vae_encoder=VaeEncoder(encoder, bundle.latents),
            vae_decoder=VaeDecoder(decoder, bundle.latents),
            preview=Preview(bundle.latents),
            sessions=(text, unet, encoder, decoder),
        )

    def close(self) -> None:
        """Close every session."""
        for session in self.sessions:
            session.close()
