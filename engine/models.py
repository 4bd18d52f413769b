"""The networks as the engine speaks of them; tensor names, scaling and casts live here only.

Shapes: pictures (B, 3, H, W) float32 in [-1, 1]; latents (B, C, h, w) float32 with h = H // 8 and
w = W // 8, scaled as the UNet sees them; embeddings (L, D), pooled ones (P,) float32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.bundle import (
    COMPONENTS,
    FAST_DECODER,
    SHALLOW_UNET,
    SKIPPED_STATES,
    TEXT_ENCODER_2,
    Bundle,
    Component,
    Latents,
)
from engine.scratch import Scratch
from engine.sessions.base import Session

Floats = npt.NDArray[np.float32]
Rgb = npt.NDArray[np.uint8]
Told = Mapping[str, Floats]
"""What the UNet is told of a picture beside its latents and its timestep, by the names of its
inputs and without the batch axis: ``encoder_hidden_states`` (L, D), the prompt's embeddings; and
where it takes them ``text_embeds`` (P,), the prompt as a whole, and ``time_ids`` (6,), sizes in
pixels."""

HIDDEN_STATES: Final = "encoder_hidden_states"
TEXT_EMBEDS: Final = "text_embeds"
TIME_IDS: Final = "time_ids"

_DEEP: Final = "deep_feature"
_KEPT_SHAPES: Final = 8
_LOG_VARIANCE: Final = (-30.0, 20.0)
"""Bounds of the encoder's log-variance, as diffusers' DiagonalGaussianDistribution sets them."""


def text_shape(told: Told) -> tuple[int, ...]:
    """(L, D) of the prompt; the shapes of all else are the same for all pictures of a bundle."""
    return told[HIDDEN_STATES].shape


def to_nchw(image: Rgb) -> Floats:
    """(H, W, 3) uint8 to (1, 3, H, W) float32 in [-1, 1]."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
    planes *= np.float32(1 / 127.5)
    planes -= np.float32(1.0)
    return planes


def to_levels(planes: Floats, scratch: Scratch | None = None) -> Floats:
    """(3, H, W) float32 in [-1, 1] to whole levels from 0 to 255, (H, W, 3) float32, clipped and
    rounded to nearest; in scratch memory where it is given."""
    scratch = scratch or Scratch()
    levels = scratch.floats("planes", planes.shape)
    np.multiply(planes, np.float32(127.5), out=levels)
    levels += np.float32(127.5)
    np.clip(levels, 0, 255, out=levels)
    np.rint(levels, out=levels)
    merged = scratch.floats("levels", (*planes.shape[1:], 3))
    return np.asarray(cv2.merge(tuple(levels), dst=merged), np.float32)


def to_rgb(planes: Floats) -> Rgb:
    """The same as (H, W, 3) uint8."""
    return to_levels(planes).astype(np.uint8)


class TextEncoder:
    """Token ids to prompt embeddings, (L, D), and to pooled ones, (P,), where it gives those."""

    def __init__(self, session: Session, component: Component) -> None:
        self._session = session
        tokens = component.inputs[0].shape[1]
        assert isinstance(tokens, int)
        self.tokens: Final = tokens
        """Length of every prompt in tokens, L."""
        self._skips = any(spec.name == SKIPPED_STATES for spec in component.outputs)
        self.gives: Final = tuple(
            tuple(axis for axis in spec.shape[1:] if isinstance(axis, int))
            for spec in component.outputs
            if spec.name != SKIPPED_STATES
        )
        """The shapes of the answers."""

    def __call__(self, input_ids: npt.NDArray[np.int64], clip_skip: int = 0) -> tuple[Floats, ...]:
        """(L,) token ids to the answers, arrays of their own; the embeddings without the last
        ``clip_skip`` layers."""
        hidden, *others = self._session.run({"input_ids": input_ids[None]})
        if self._skips:
            (skipped,) = others
            hidden, others = skipped[:, clip_skip - 1] if clip_skip else hidden, []
        return tuple(np.array(answer[0], np.float32) for answer in (hidden, *others))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnetRow:
    """One row of a UNet call: one picture at one denoising step.

    Attributes:
        latents: (C, h, w).
        scale: The schedule's input scale: the UNet sees the latents times this.
        timestep: What the UNet is told.
        told: What it is told; every row of a call the same things, in the same shapes.
        conditioning: (C + 1, h, w): the mask, then the masked picture's latents; None for a UNet
            without inpainting channels.
        deep: (D, h, w), where the deep feature of the row is kept between steps; None where it is
            not wanted.
        shallow: Read the deep feature and run the UNet's outer layers alone, instead of running it
            whole and writing the feature. All rows of a call say the same.

    What is told and the conditioning are taken to stay as they are for as long as they exist.
    """

    latents: Floats
    scale: float = 1.0
    timestep: float
    told: Told
    conditioning: Floats | None
    deep: Floats | None = None
    shallow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Feeds:
    """The inputs of UNet calls of one shape, and whose constants each row holds."""

    sample: Floats
    timestep: Floats
    by_name: dict[str, Floats]
    tellings: list[dict[str, weakref.ref[Floats]]]
    conditionings: list[weakref.ref[Floats] | None]

    def fill(self, i: int, row: UnetRow) -> None:
        """Write row ``i``: what changes at every step, and the rest where it is another's."""
        split = len(row.latents)
        np.multiply(row.latents, np.float32(row.scale), out=self.sample[i, :split])
        self.timestep[i] = row.timestep
        if row.shallow:
            self.by_name[_DEEP][i] = row.deep
        for name, array in row.told.items():
            if not _is(self.tellings[i].get(name), array):
                self.by_name[name][i] = array
                self.tellings[i][name] = weakref.ref(array)
        if row.conditioning is not None and not _is(self.conditionings[i], row.conditioning):
            self.sample[i, split:] = row.conditioning
            self.conditionings[i] = weakref.ref(row.conditioning)


def _is(held: weakref.ref[Floats] | None, array: Floats) -> bool:
    return held is not None and held() is array


class Unet:
    """The denoiser. Rows of one call may stand at different steps of different requests."""

    def __init__(self, session: Session, *, channels: int, shallow: Session | None = None) -> None:
        self._session = session
        self._shallow = shallow
        self._channels = channels
        self._feeds: dict[tuple[int, ...], _Feeds] = {}

    def __call__(self, rows: Sequence[UnetRow]) -> Floats:
        """Predict for every row; all rows have the same latent shape and are told the same things.

        Returns:
            (B, C, h, w), the session's own buffer, overwritten by the next call.
        """
        feeds = self._buffers(len(rows), rows[0])
        for i, row in enumerate(rows):
            feeds.fill(i, row)
        if rows[0].shallow:
            assert self._shallow is not None
            return self._shallow.run(feeds.by_name)[0]
        noise_pred, *features = self._session.run(feeds.by_name)
        for i, row in enumerate(rows):
            if row.deep is not None:
                row.deep[:] = features[0][i]
        return noise_pred

    def _buffers(self, batch: int, row: UnetRow) -> _Feeds:
        plane = row.latents.shape[1:]
        told = {name: array.shape for name, array in row.told.items()}
        if row.shallow:
            assert row.deep is not None
            told[_DEEP] = row.deep.shape
        key = (batch, *plane, *(side for shape in told.values() for side in shape))
        feeds = self._feeds.pop(key, None)
        if feeds is None:
            sample = np.empty((batch, self._channels, *plane), np.float32)
            timestep = np.empty(batch, np.float32)
            others = {name: np.empty((batch, *shape), np.float32) for name, shape in told.items()}
            feeds = _Feeds(
                sample=sample,
                timestep=timestep,
                by_name={"sample": sample, "timestep": timestep, **others},
                tellings=[{} for _ in range(batch)],
                conditionings=[None] * batch,
            )
        self._feeds[key] = feeds  # the shapes used last are kept
        if len(self._feeds) > _KEPT_SHAPES:
            del self._feeds[next(iter(self._feeds))]
        return feeds


class VaeEncoder:
    """Pictures to latents, in two halves: what the network says, and what is made of it."""

    def __init__(self, session: Session, latents: Latents) -> None:
        self._session = session
        self._latents = latents

    def moments(self, image: Floats) -> Floats:
        """(1, 3, H, W) in [-1, 1] to (1, 2 C, h, w), means and log-variances; (1, C, h, w) where
        the encoder has no variance."""
        (out,) = self._session.run({"image": image})
        return np.array(out, np.float32)

    def latents(self, moments: Floats, draw: Callable[[tuple[int, ...]], Floats] | None) -> Floats:
        """What ``moments`` gave to latents (1, C, h, w).

        Args:
            moments: They are not changed.
            draw: Draws normal noise of a shape, to sample the latents as diffusers does; None
                takes their mean. An encoder without variance draws nothing.
        """
        channels = self._latents.channels
        mean = moments[:, :channels]
        if moments.shape[1] == 2 * channels and draw is not None:
            log_variance = np.clip(moments[:, channels:], *_LOG_VARIANCE)
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
    """The networks of one bundle, opened, and memory to work in for who runs them."""

    text_encoders: tuple[TextEncoder, ...]
    unet: Unet
    vae_encoder: VaeEncoder
    vae_decoder: VaeDecoder
    vae_decoder_fast: VaeDecoder | None
    preview: Preview
    tells_size: bool
    sessions: Mapping[str, Session]
    scratch: Scratch = field(default_factory=Scratch)

    @classmethod
    def open(cls, bundle: Bundle, open_session: Callable[[Component], Session]) -> Models:
        """Open every network of a bundle with the given opener."""
        text, unet, encoder, decoder = (
            open_session(bundle.components[name]) for name in COMPONENTS
        )
        extra = {
            name: open_session(bundle.components[name])
            for name in (TEXT_ENCODER_2, FAST_DECODER, SHALLOW_UNET)
            if name in bundle.components
        }
        fast = None
        if bundle.fast_latents is not None:
            fast = VaeDecoder(extra[FAST_DECODER], bundle.fast_latents)
        return cls(
            text_encoders=tuple(
                TextEncoder(session, bundle.components[name])
                for name, session in (("text_encoder", text), *extra.items())
                if name in bundle.text_encoders
            ),
            unet=Unet(unet, channels=bundle.unet_channels, shallow=extra.get(SHALLOW_UNET)),
            vae_encoder=VaeEncoder(encoder, bundle.latents),
            vae_decoder=VaeDecoder(decoder, bundle.latents),
            vae_decoder_fast=fast,
            preview=Preview(bundle.latents),
            tells_size=any(spec.name == TIME_IDS for spec in bundle.components["unet"].inputs),
            sessions=dict(zip(COMPONENTS, (text, unet, encoder, decoder), strict=True)) | extra,
        )

    def size_told(self, height: int, width: int) -> Told:
        """What the UNet is told of a working size in pixels: that the picture always had it and is
        not cut out of another, as diffusers tells it where nothing else is said."""
        if not self.tells_size:
            return {}
        return {TIME_IDS: np.array([height, width, 0, 0, height, width], np.float32)}

    def close(self) -> None:
        """Close every session."""
        for session in self.sessions.values():
            session.close()
