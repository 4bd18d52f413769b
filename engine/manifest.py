"""The entries of ``bundle.json``: their values, and the strict reading of each.

Every read checks presence and type and raises ``BundleError`` with the path of the entry, its
value and what is allowed; entries that nobody asked for are refused.

Shapes are symbolic: an axis is an int or one of ``"batch"``, ``"tokens"``, ``"height"``,
``"width"``, ``"height/8"``, ``"width/8"``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.errors import BundleError

AXES: Final = ("batch", "tokens", "height", "width", "height/8", "width/8")
DTYPES: Final = ("float32", "float16", "int64")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype and symbolic shape of one tensor of a network."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the bundle: its name, its size in bytes and its SHA-256 in hexadecimal."""

    file: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Measure a file that was just written."""
        return cls(file=path.name, size=path.stat().st_size, sha256=sha256_of(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far an exported network is from the one it was made from, on the same inputs.

    ``psnr_db`` is 20 log10(max|reference| / rmse); ``max_abs_error`` is in the output's own units.
    """

    psnr_db: float
    max_abs_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One network of the bundle."""

    model: FileRecord
    data: FileRecord | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Parity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latents:
    """What the latents mean.

    Latents seen by the UNet are ``(vae_latents - shift_factor) * scaling_factor``.
    ``rgb_factors`` is an optional linear preview: four rows (one per latent channel, then the
    bias) of three RGB weights in [-1, 1] units; empty when the exporter fitted none.

    A fast decoder has an entry of its own, since it may be made for latents on another scale.
    """

    channels: int
    scaling_factor: float
    shift_factor: float = 0.0
    rgb_factors: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request gets when it does not say.

    ``size`` is the side in pixels the model was trained at; the region round a mask is brought to
    it. ``max_size`` is the longest side the model is still good at without cropping. ``context``
    is what a region shows round the mask's box, as a share of the box's longer side, on each
    side. ``scheduler`` is one of the names of ``engine.schedulers``.
    """

    num_inference_steps: int
    guidance_scale: float
    size: int
    max_size: int
    context: float
    scheduler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Safety:
    """How the bundle's own safety checker sees a picture and when it flags it.

    A picture is resized so that its shorter side has ``shortest_edge`` pixels, its centre of
    ``crop`` by ``crop`` pixels is cut out, and ``mean`` and ``std`` bring its channels, as shares
    of 255, to the network's range. The network answers with one cosine for each threshold, first
    those of ``special_care``, then those of ``concepts``.
    """

    shortest_edge: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    special_care: tuple[float, ...]
    concepts: tuple[float, ...]


class Entry:
    """A JSON object under inspection: every read checks presence and type, and names the path."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{where}: is {value!r}; expected an object")
        self.value, self.where = value, where
        self.unread = set(value)

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self.value:
            raise BundleError(f"{self.where}: {key} is missing")
        self.unread.discard(key)
        value = self.value[key]
        names = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, names) or (isinstance(value, bool) and bool not in names):
            allowed = " or ".join(name.__name__ for name in names)
            raise BundleError(f"{self.where}: {key} is {value!r}; expected {allowed}")
        return value

    def number(self, key: str, *, low: float = -1e9, high: float = 1e9) -> float:
        value = self.get(key, (int, float))
        if not low <= value <= high:
            raise BundleError(f"{self.where}: {key} is {value}; allowed: {low:g} to {high:g}")
        return float(value)

    def integer(self, key: str, *, low: int, high: int) -> int:
        value: int = self.get(key, int)
        if not low <= value <= high:
            raise BundleError(f"{self.where}: {key} is {value}; allowed: {low} to {high}")
        return value

    def one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        value: str = self.get(key, str)
        if value not in allowed:
            raise BundleError(f"{self.where}: {key} is {value!r}; allowed: {', '.join(allowed)}")
        return value

    def entry(self, key: str) -> Entry:
        return Entry(self.get(key, dict), f"{self.where}: {key}")

    def entries(self, key: str) -> list[Entry]:
        items = self.get(key, list)
        return [Entry(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(items)]

    def numbers(self, key: str, *, length: int | None = None) -> tuple[float, ...]:
        values = self.get(key, list)
        fits = length is None or len(values) == length
        if not (fits and all(_is_finite(value) for value in values)):
            wanted = "numbers" if length is None else f"{length} numbers"
            raise BundleError(f"{self.where}: {key} is {values!r}; expected {wanted}")
        return tuple(float(value) for value in values)

    def done(self) -> None:
        if self.unread:
            raise BundleError(f"{self.where}: unknown entries {sorted(self.unread)}")


def read_file(entry: Entry) -> FileRecord:
    record = FileRecord(
        file=entry.get("file", str),
        size=entry.integer("size", low=0, high=1 << 50),
        sha256=entry.get("sha256", str),
    )
    entry.done()
    return record


def read_component(entry: Entry) -> Component:
    data, parity = entry.get("data", (dict, type(None))), entry.get("parity", (dict, type(None)))
    component = Component(
        model=read_file(entry.entry("model")),
        data=None if data is None else read_file(Entry(data, f"{entry.where}: data")),
        inputs=tuple(_read_tensor(item) for item in entry.entries("inputs")),
        outputs=tuple(_read_tensor(item) for item in entry.entries("outputs")),
        parity=None if parity is None else _read_parity(Entry(parity, f"{entry.where}: parity")),
    )
    entry.done()
    return component


def _read_tensor(entry: Entry) -> TensorSpec:
    shape = entry.get("shape", list)
    for axis in shape:
        known = axis in AXES if isinstance(axis, str) else type(axis) is int and axis > 0
        if not known:
            raise BundleError(
                f"{entry.where}: axis {axis!r} is unknown; allowed: a size or {', '.join(AXES)}"
            )
    spec = TensorSpec(
        name=entry.get("name", str), dtype=entry.one_of("dtype", DTYPES), shape=tuple(shape)
    )
    entry.done()
    return spec


def _read_parity(entry: Entry) -> Parity:
    parity = Parity(psnr_db=entry.number("psnr_db"), max_abs_error=entry.number("max_abs_error"))
    entry.done()
    return parity


def read_latents(entry: Entry) -> Latents:
    factors = entry.get("rgb_factors", list)
    channels = entry.integer("channels", low=1, high=64)
    rows_ok = all(
        isinstance(row, list) and len(row) == 3 and all(_is_finite(x) for x in row)
        for row in factors
    )
    if factors and (len(factors) != channels + 1 or not rows_ok):
        raise BundleError(
            f"{entry.where}: rgb_factors must be {channels + 1} rows of 3 numbers, or empty"
        )
    latents = Latents(
        channels=channels,
        scaling_factor=entry.number("scaling_factor", low=1e-6),
        shift_factor=entry.number("shift_factor"),
        rgb_factors=tuple((float(r), float(g), float(b)) for r, g, b in factors),
    )
    entry.done()
    return latents


def read_defaults(entry: Entry) -> Defaults:
    defaults = Defaults(
        num_inference_steps=entry.integer("num_inference_steps", low=1, high=1000),
        guidance_scale=entry.number("guidance_scale", low=0, high=100),
        size=entry.integer("size", low=64, high=4096),
        max_size=entry.integer("max_size", low=64, high=4096),
        context=entry.number("context", low=0, high=8),
        scheduler=entry.get("scheduler", str),
    )
    entry.done()
    for name, side in (("size", defaults.size), ("max_size", defaults.max_size)):
        if side % 8:
            raise BundleError(f"{entry.where}: {name} is {side}; it must be a multiple of 8")
    if defaults.max_size < defaults.size:
        raise BundleError(
            f"{entry.where}: max_size is {defaults.max_size}; at least size, {defaults.size}"
        )
    return defaults


def read_safety(entry: Entry) -> Safety:
    edge = entry.integer("shortest_edge", low=1, high=4096)
    mean, std = entry.numbers("mean", length=3), entry.numbers("std", length=3)
    safety = Safety(
        shortest_edge=edge,
        crop=entry.integer("crop", low=1, high=edge),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        special_care=entry.numbers("special_care"),
        concepts=entry.numbers("concepts"),
    )
    entry.done()
    if min(std) <= 0:
        raise BundleError(f"{entry.where}: std is {list(std)}; expected numbers above 0")
    if not safety.concepts:
        raise BundleError(f"{entry.where}: concepts is []; at least one threshold is needed")
    return safety


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
