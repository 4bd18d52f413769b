"""The model bundle: the one contract between export, which writes it, and engine, which opens it.

A bundle is a directory with ``bundle.json``, one ONNX file per component (large weights beside it
in ``<name>.onnx.data``), ``tokenizer.json``, and documents such as the licence. ``Bundle.open``
trusts nothing: every file is listed with its size and SHA-256, no other file may lie there, no
file may be a link or lie outside, and the declared tensors must fit each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from engine.errors import BundleError
from engine.manifest import (
    Component,
    Defaults,
    Entry,
    FileRecord,
    Latents,
    Parity,
    Safety,
    TensorSpec,
    read_component,
    read_defaults,
    read_file,
    read_latents,
    read_safety,
    sha256_of,
)

__all__ = [
    "Bundle",
    "Component",
    "Defaults",
    "FileRecord",
    "Latents",
    "Parity",
    "Safety",
    "TensorSpec",
]

FORMAT_VERSION: Final = 1
MANIFEST: Final = "bundle.json"
VAE_SCALE_FACTOR: Final = 8
"""Pixels per latent cell, the same for every Stable Diffusion VAE."""

FAMILIES: Final = ("sd1", "sd2", "sdxl")
TARGETS: Final = ("cpu", "cuda", "tensorrt")
PRECISIONS: Final = ("fp32", "fp16", "int8")
COMPONENTS: Final = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
TEXT_ENCODER_2: Final = "text_encoder_2"
SAFETY_CHECKER: Final = "safety_checker"
FAST_DECODER: Final = "vae_decoder_fast"
SHALLOW_UNET: Final = "unet_shallow"
"""The components that a bundle may have and need not."""
SKIPPED_STATES: Final = "skipped_hidden_states"
"""An output that the text encoder may have: what it says without its last 1, 2, ... layers."""

SIZE_IDS: Final = 6
"""Numbers by which SDXL's UNet is told of sizes: height and width of the original, top and left of
the crop, height and width of what is made."""

_LATENT_PLANE: Final = ("height/8", "width/8")
_MAX_MANIFEST_BYTES: Final = 1 << 20
_Shape = tuple[str, tuple[int | str, ...]]
"""Name and symbolic shape of a tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified model bundle. Open one with ``Bundle.open``; export writes one with ``write``."""

    path: Path
    family: str
    target: str
    precision: str
    components: Mapping[str, Component]
    tokenizer: FileRecord
    latents: Latents
    scheduler: Mapping[str, Any]
    defaults: Defaults
    provenance: Mapping[str, Any] = field(default_factory=dict)
    licence: Mapping[str, Any] = field(default_factory=dict)
    documents: tuple[FileRecord, ...] = ()
    safety: Safety | None = None
    fast_latents: Latents | None = None
    tokenizer_2: FileRecord | None = None
    force_zeros_for_empty_prompt: bool = False
    """Whether the embeddings are zeros where no negative prompt is given."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and verify the bundle in a directory.

        Raises:
            BundleError: With one sentence naming the file or entry, the value and what is allowed.
        """
        bundle = cls.read(path)
        bundle._verify_contents()
        return bundle

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Bundle:
        """The same but for the contents of the files: for who leaves opening it to another, who
        compares the ``fingerprint``.

        Raises:
            BundleError: See ``open``.
        """
        directory = Path(path)
        bundle = _parse(directory, _read_manifest(directory))
        bundle._verify_shapes()
        bundle._verify_files()
        return bundle

    def write(self) -> None:
        """Write ``bundle.json`` atomically; every listed file must already lie in ``path``."""
        manifest = {"format_version": FORMAT_VERSION, **_plain(self)}
        del manifest["path"]
        for name in ("safety", "fast_latents", "tokenizer_2", "force_zeros_for_empty_prompt"):
            if not manifest[name]:
                del manifest[name]
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        parsed = _parse(self.path, json.loads(text))
        parsed._verify_shapes()
        temporary = self.path / f"{MANIFEST}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / MANIFEST)
        parsed._verify_files()
        parsed._verify_contents()

    def files(self) -> Iterator[FileRecord]:
        """Every file of the bundle but the manifest; a data file that networks share comes once."""
        shared: set[FileRecord] = set()
        for component in self.components.values():
            yield component.model
            if component.data is not None and component.data not in shared:
                shared.add(component.data)
                yield component.data
        yield from self.tokenizers
        yield from self.documents

    @property
    def tokenizers(self) -> tuple[FileRecord, ...]:
        """One for each of ``text_encoders``."""
        second = self.tokenizer_2
        return (self.tokenizer,) if second is None else (self.tokenizer, second)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The names of the text encoders, in the order in which their answers are put together."""
        return ("text_encoder", TEXT_ENCODER_2)[: len(self.tokenizers)]

    @property
    def unet_channels(self) -> int:
        """Input channels of the UNet: 9 for inpainting checkpoints, 4 for plain ones."""
        channels = self.components["unet"].inputs[0].shape[1]
        assert isinstance(channels, int)
        return channels

    @property
    def deep_channels(self) -> int:
        """Channels of the deep feature that the UNet hands to its shallow part; 0 without one."""
        unet = self.components.get("unet")
        return 0 if unet is None or len(unet.outputs) < 2 else _int_axis(unet.outputs, 1, 1)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the manifest says. Since that has the SHA-256 of every file, verified
        bundles of one fingerprint are the same."""
        text = json.dumps({**_plain(self), "path": None}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def clip_skips(self) -> int:
        """How many of its last layers the text encoder can leave out at most."""
        text = self.components.get("text_encoder")
        gives = () if text is None else text.outputs
        skipped = tuple(spec for spec in gives if spec.name == SKIPPED_STATES)
        return _int_axis(skipped, 0, 1) if skipped else 0

    def _verify_files(self) -> None:
        listed = {record.file: record for record in self.files()}
        if len(listed) != sum(1 for _ in self.files()):
            raise BundleError(f"{self.path}: {MANIFEST} lists the same file twice")
        for name in sorted(listed):
            if name != Path(name).name or name in ("", ".", "..", MANIFEST):
                raise BundleError(f"{self.path}: {name!r} is not a plain file name in the bundle")
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            if entry.name != MANIFEST and entry.name not in listed:
                raise BundleError(f"{self.path}: {entry.name} is not listed in {MANIFEST}")
        for name, record in sorted(listed.items()):
            file = self.path / name
            if file.is_symlink():
                raise BundleError(f"{file}: is a symbolic link; a bundle holds plain files only")
            if not file.is_file():
                raise BundleError(f"{file}: is missing; {MANIFEST} lists it")
            size = file.stat().st_size
            if size != record.size:
                raise BundleError(f"{file}: has {size} bytes, {MANIFEST} says {record.size}")

    def _verify_contents(self) -> None:
        for record in sorted(self.files(), key=lambda record: record.file):
            file = self.path / record.file
            digest = sha256_of(file)
            if digest != record.sha256:
                raise BundleError(
                    f"{file}: was changed: its SHA-256 is {digest}, {MANIFEST} says {record.sha256}"
                )

    def _verify_shapes(self) -> None:
        """The tensors of the components must be the ones the engine feeds, and must fit."""
        optional = {
            TEXT_ENCODER_2: self.tokenizer_2 is not None,
            SAFETY_CHECKER: self.safety is not None,
            FAST_DECODER: self.fast_latents is not None,
            SHALLOW_UNET: self.deep_channels != 0,
        }
        known = (*COMPONENTS, *(name for name, there in optional.items() if there))
        missing = [name for name in known if name not in self.components]
        unknown = [name for name in self.components if name not in known]
        if missing or unknown:
            raise BundleError(
                f"{self.path}: components missing: {missing}, unknown: {unknown}; "
                f"allowed: {list(known)}"
            )
        c = self.latents.channels
        _, unet, encoder, decoder = (self.components[name] for name in COMPONENTS)
        rows = 2 * c + 1 if _int_axis(unet.inputs, 0, 1) != c else c
        sample = ("sample", ("batch", rows, *_LATENT_PLANE))
        takes = [sample, ("timestep", ("batch",)), *self._verify_text_encoders()]
        _expect(self.path, "unet", unet.inputs, takes)
        prediction = ("noise_pred", ("batch", c, *_LATENT_PLANE))
        deep = ("deep_feature", ("batch", self.deep_channels, *_LATENT_PLANE))
        gives = [prediction, deep] if SHALLOW_UNET in known else [prediction]
        _expect(self.path, "unet", unet.outputs, gives)
        if SHALLOW_UNET in known:
            shallow = self.components[SHALLOW_UNET]
            _expect(self.path, SHALLOW_UNET, shallow.inputs, [*takes, deep])
            _expect(self.path, SHALLOW_UNET, shallow.outputs, [prediction])
        image = ("image", ("batch", 3, "height", "width"))
        _expect(self.path, "vae_encoder", encoder.inputs, [image])
        latents = ("latents", ("batch", c, *_LATENT_PLANE))
        moments = ("moments", ("batch", 2 * c, *_LATENT_PLANE))
        gaussian = bool(encoder.outputs) and encoder.outputs[0].name == "moments"
        _expect(self.path, "vae_encoder", encoder.outputs, [moments if gaussian else latents])
        _expect(self.path, "vae_decoder", decoder.inputs, [latents])
        _expect(self.path, "vae_decoder", decoder.outputs, [image])
        if self.fast_latents is not None:
            if self.fast_latents.channels != c:
                raise BundleError(
                    f"{self.path}: fast_latents: channels is {self.fast_latents.channels}; "
                    f"the latents have {c}"
                )
            fast = self.components[FAST_DECODER]
            _expect(self.path, FAST_DECODER, fast.inputs, [latents])
            _expect(self.path, FAST_DECODER, fast.outputs, [image])
        if self.safety is not None:
            checker, side = self.components[SAFETY_CHECKER], self.safety.crop
            count = len(self.safety.special_care) + len(self.safety.concepts)
            small = ("image", ("batch", 3, side, side))
            _expect(self.path, SAFETY_CHECKER, checker.inputs, [small])
            _expect(self.path, SAFETY_CHECKER, checker.outputs, [("cosines", ("batch", count))])

    def _verify_text_encoders(self) -> list[_Shape]:
        """Check the text encoders; what the UNet then takes of their answers, and of sizes."""
        names = self.text_encoders
        if (self.family == "sdxl") != (len(names) == 2):
            raise BundleError(
                f"{self.path}: family is {self.family}, with text encoders {list(names)}; "
                "allowed: two for sdxl, one for the others"
            )
        hidden = "last_hidden_state" if len(names) == 1 else "penultimate_hidden_state"
        encoders = [self.components[name] for name in names]
        tokens = _int_axis(encoders[0].inputs, 0, 1)
        widths = [_int_axis(encoder.outputs, 0, 2) for encoder in encoders]
        pooled: list[_Shape] = []
        if len(names) == 2:
            pooled = [("text_embeds", ("batch", _int_axis(encoders[1].outputs, 1, 1)))]
        for i, (name, encoder) in enumerate(zip(names, encoders, strict=True)):
            _expect(self.path, name, encoder.inputs, [("input_ids", ("batch", tokens))])
            gives: list[_Shape] = [(hidden, ("batch", tokens, widths[i]))]
            if self.clip_skips and len(names) == 1:
                gives.append((SKIPPED_STATES, ("batch", self.clip_skips, tokens, widths[i])))
            _expect(self.path, name, encoder.outputs, gives + (pooled if i else []))
        told: list[_Shape] = [("encoder_hidden_states", ("batch", "tokens", sum(widths)))]
        sizes: list[_Shape] = [("time_ids", ("batch", SIZE_IDS))] if pooled else []
        return [*told, *pooled, *sizes]


def _plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, all the way down."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _expect(
    path: Path,
    component: str,
    found: tuple[TensorSpec, ...],
    expected: Sequence[_Shape],
) -> None:
    have = [(spec.name, spec.shape) for spec in found]
    if have != list(expected):
        raise BundleError(f"{path}: {component} has tensors {have}; expected {list(expected)}")
    for spec in found:
        dtype = "int64" if spec.name == "input_ids" else "float32"
        if spec.dtype != dtype:
            raise BundleError(f"{path}: {component}: {spec.name} is {spec.dtype}; expected {dtype}")


def _int_axis(specs: tuple[TensorSpec, ...], index: int, axis: int) -> int:
    """The axis of a tensor, or -1 where it is symbolic or absent (which then fits nothing)."""
    if len(specs) <= index or len(specs[index].shape) <= axis:
        return -1
    size = specs[index].shape[axis]
    return size if isinstance(size, int) else -1


def _read_manifest(directory: Path) -> Any:
    manifest = directory / MANIFEST
    if not directory.is_dir():
        raise BundleError(f"{directory}: is not a directory; a bundle is a directory")
    if manifest.is_symlink() or not manifest.is_file():
        raise BundleError(f"{directory}: has no {MANIFEST}; make a bundle with `edgefill export`")
    if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{manifest}: is larger than {_MAX_MANIFEST_BYTES} bytes")
    try:
        return json.loads(manifest.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise BundleError(f"{manifest}: is not valid JSON: {exc}") from exc


def _parse(directory: Path, value: Any) -> Bundle:
    top = Entry(value, str(directory / MANIFEST))
    version = top.get("format_version", int)
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{top.where}: format_version is {version}; this Edgefill reads {FORMAT_VERSION}"
        )
    components = top.entry("components")
    safety = read_safety(top.entry("safety")) if "safety" in top.value else None
    fast = read_latents(top.entry("fast_latents")) if "fast_latents" in top.value else None
    second = read_file(top.entry("tokenizer_2")) if "tokenizer_2" in top.value else None
    zeros = "force_zeros_for_empty_prompt"
    bundle = Bundle(
        path=directory,
        family=top.one_of("family", FAMILIES),
        target=top.one_of("target", TARGETS),
        precision=top.one_of("precision", PRECISIONS),
        components=MappingProxyType(
            {name: read_component(components.entry(name)) for name in components.value}
        ),
        tokenizer=read_file(top.entry("tokenizer")),
        latents=read_latents(top.entry("latents")),
        scheduler=MappingProxyType(top.get("scheduler", dict)),
        defaults=read_defaults(top.entry("defaults")),
        provenance=MappingProxyType(top.get("provenance", dict)),
        licence=MappingProxyType(top.get("licence", dict)),
        documents=tuple(read_file(entry) for entry in top.entries("documents")),
        safety=safety,
        fast_latents=fast,
        tokenizer_2=second,
        force_zeros_for_empty_prompt=zeros in top.value and top.get(zeros, bool),
    )
    top.done()
    return bundle
