"""A diffusers folder: found, read, and refused by name where Edgefill cannot export it.

Weights are read from ``.safetensors`` only. Pickled weights (``.bin``, ``.ckpt``, ``.pt``) can run
code when they are opened, so they are refused rather than read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.bundle import TEXT_ENCODER_2, VAE_SCALE_FACTOR, FileRecord
from export.entries import (
    class_of,
    read_json,
    require_factor,
    require_list,
    require_sides,
    require_whole,
)
from export.errors import ExportError
from export.preprocessor import Preprocessor, read_preprocessor
from export.sdxl import (
    XL_PIPELINES,
    check_added_embeddings,
    refuse_latent_statistics,
    refuse_refiner,
)

if TYPE_CHECKING:
    from export.lora import Lora

PIPELINES: Final = (
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    *XL_PIPELINES,
)
WEIGHT_STEMS: Final = {
    "text_encoder": "model",
    TEXT_ENCODER_2: "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "safety_checker": "model",
}
"""Folder of each network, and how its weight files are called before ``.safetensors``."""

SAFETY_CHECKER: Final = "StableDiffusionSafetyChecker"

_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
_UNET_NEEDS_NONE: Final = (
    "time_cond_proj_dim",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder whose networks Edgefill can export.

    Attributes:
        folder: The diffusers folder on this machine.
        source: What the caller named: a hub name, or the folder's own name.
        revision: The commit on the hub, None for a folder.
        pipeline: The ``_class_name`` of ``model_index.json``.
        variant: ``"fp16"`` where only ``*.fp16.safetensors`` files exist, else None.
        text_encoder: Configuration of the text encoder, as its ``config.json`` has it.
        unet: Configuration of the UNet.
        vae: Configuration of the autoencoder.
        scheduler: ``scheduler_config.json``, with its ``_class_name``.
        preprocessor: How the safety checker sees pictures; None where there is no safety checker,
            or it is not wanted.
        places: Folders of networks that lie elsewhere than in ``folder``.
        loras: What is fused into the weights when they are loaded.
        extras: What the bundle's provenance says besides.
        text_encoder_2: Configuration of the second text encoder, None where there is one only.
        force_zeros_for_empty_prompt: Whether the embeddings are zeros where no negative prompt is
            given.
    """

    folder: Path
    source: str
    revision: str | None
    pipeline: str
    variant: Mapping[str, str | None]
    text_encoder: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    preprocessor: Preprocessor | None = None
    places: Mapping[str, Path] = field(default_factory=dict)
    loras: tuple[Lora, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    text_encoder_2: Mapping[str, Any] | None = None
    force_zeros_for_empty_prompt: bool = False

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        source: str = "",
        revision: str | None = None,
        safety_checker: bool = True,
        vae: Path | None = None,
    ) -> Checkpoint:
        """Read and check a diffusers folder; no weights are loaded.

        Args:
            folder: The folder on this machine.
            source: What the caller named; the folder's own name where empty.
            revision: The commit on the hub, None for a folder.
            safety_checker: Look at the safety checker too, where there is one.
            vae: The folder of another autoencoder, taken in place of the checkpoint's.

        Raises:
            ExportError: With what was found and what is supported.
        """
        index = read_json(folder / "model_index.json")
        pipeline = str(index.get("_class_name"))
        if pipeline not in PIPELINES:
            raise ExportError(
                f"{folder}: is a {pipeline}; supported pipelines: {', '.join(PIPELINES)}"
            )
        two = pipeline in XL_PIPELINES
        if two:
            refuse_refiner(folder, index)
            _check_class(folder, index, TEXT_ENCODER_2, "CLIPTextModelWithProjection")
        _check_class(folder, index, "text_encoder", "CLIPTextModel")
        _check_class(folder, index, "unet", "UNet2DConditionModel")
        if vae is None:
            _check_class(folder, index, "vae", "AutoencoderKL", "AutoencoderTiny")
        places = {} if vae is None else {"vae": vae}
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        scheduler.setdefault("_class_name", class_of(index, "scheduler"))
        preprocessor = _preprocessor(folder, index) if safety_checker else None
        zeros = index.get("force_zeros_for_empty_prompt", two)
        if not isinstance(zeros, bool):
            raise ExportError(
                f"{folder / 'model_index.json'}: force_zeros_for_empty_prompt is {zeros!r}; "
                "true or false is needed"
            )
        absent = {"safety_checker": preprocessor is None, TEXT_ENCODER_2: not two}
        checkpoint = cls(
            folder=folder,
            source=source or folder.resolve().name,
            revision=revision,
            pipeline=pipeline,
            variant={
                name: _variant(places.get(name, folder / name), name)
                for name in WEIGHT_STEMS
                if not absent.get(name, False)
            },
            text_encoder=read_json(folder / "text_encoder" / "config.json"),
            unet=read_json(folder / "unet" / "config.json"),
            vae=read_json(places.get("vae", folder / "vae") / "config.json"),
            scheduler=scheduler,
            preprocessor=preprocessor,
            places=places,
            text_encoder_2=read_json(folder / TEXT_ENCODER_2 / "config.json") if two else None,
            force_zeros_for_empty_prompt=two and zeros,
        )
        checkpoint._check_entries()
        checkpoint._check_unet()
        checkpoint._check_vae()
        checkpoint._check_text_encoders()
        return checkpoint

    @property
    def text_encoders(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of all text encoders, by folder."""
        second = self.text_encoder_2
        first: dict[str, Mapping[str, Any]] = {"text_encoder": self.text_encoder}
        return first if second is None else {**first, TEXT_ENCODER_2: second}

    @property
    def vae_class(self) -> str:
        """``"AutoencoderKL"`` or ``"AutoencoderTiny"``."""
        return str(self.vae["_class_name"])

    @property
    def scaling_factor(self) -> float:
        """What the VAE's latents are multiplied with; the class's usual one where it is null."""
        usual = 0.18215 if self.vae_class == "AutoencoderKL" else 1.0
        return float(self.vae.get("scaling_factor") or usual)

    def weights(self, *names: str) -> list[Path]:
        """The weight files that are read, of all networks or of those named, in a stable order."""
        return [file for name in names or self.variant for file in _weights(self.part(name), name)]

    def part(self, name: str) -> Path:
        """The folder of a network."""
        return self.places.get(name, self.folder / name)

    def digest(self, *names: str) -> str:
        """SHA-256 over the names and SHA-256 sums of ``weights(*names)``."""
        total = hashlib.sha256()
        for network in names or self.variant:
            for file in self.weights(network):
                total.update(f"{network}/{file.name} {FileRecord.of(file).sha256}\n".encode())
        return total.hexdigest()

    def _check_entries(self) -> None:
        """The entries that are computed with must be numbers."""
        where = self.folder / "unet" / "config.json"
        require_whole(where, self.unet, "in_channels", "out_channels")
        require_sides(where, self.unet, "sample_size")
        where = self.part("vae") / "config.json"
        require_whole(where, self.vae, "latent_channels")
        require_list(where, self.vae, "block_out_channels")
        require_list(where, self.vae, "num_encoder_blocks", smallest=0)
        require_factor(where, self.vae, "scaling_factor")
        keys = ("hidden_size", "vocab_size", "max_position_embeddings", "projection_dim")
        for name, entries in self.text_encoders.items():
            require_whole(self.folder / name / "config.json", entries, *keys)

    def _check_unet(self) -> None:
        where, unet = self.folder / "unet" / "config.json", self.unet
        channels, latents = unet.get("in_channels", 4), self.vae.get("latent_channels", 4)
        if channels not in (latents, 2 * latents + 1):
            raise ExportError(
                f"{where}: in_channels is {channels}; with {latents} latent channels "
                f"{latents} (plain) and {2 * latents + 1} (inpainting) are supported; the "
                f"autoencoder is {self.part('vae')}"
            )
        if unet.get("out_channels", 4) != latents:
            raise ExportError(
                f"{where}: out_channels is {unet.get('out_channels')}; the VAE has {latents}"
            )
        for key in _UNET_NEEDS_NONE:
            if unet.get(key) is not None:
                raise ExportError(f"{where}: {key} is {unet[key]!r}; only null is supported")
        if self.text_encoder_2 is not None:
            check_added_embeddings(where, unet, self.text_encoder_2)
        elif unet.get("addition_embed_type") not in (None, "text"):
            raise ExportError(
                f"{where}: addition_embed_type is {unet['addition_embed_type']!r}; "
                "supported: null and 'text'"
            )
        if not isinstance(unet.get("cross_attention_dim", 1280), int):
            raise ExportError(
                f"{where}: cross_attention_dim is {unet['cross_attention_dim']!r}; "
                "one width for all levels is supported"
            )

    def _check_vae(self) -> None:
        where, vae = self.part("vae") / "config.json", self.vae
        if vae.get("_class_name") not in ("AutoencoderKL", "AutoencoderTiny"):
            raise ExportError(
                f"{where}: _class_name is {vae.get('_class_name')!r}; "
                "supported: AutoencoderKL, AutoencoderTiny"
            )
        if self.text_encoder_2 is not None:
            refuse_latent_statistics(where, vae)
        key = "block_out_channels" if self.vae_class == "AutoencoderKL" else "num_encoder_blocks"
        default = (64,) if self.vae_class == "AutoencoderKL" else (1, 3, 3, 3)
        factor = 2 ** (len(vae.get(key, default)) - 1)
        if factor != VAE_SCALE_FACTOR:
            raise ExportError(
                f"{where}: one latent cell covers {factor} pixels; {VAE_SCALE_FACTOR} is supported"
            )

    def _check_text_encoders(self) -> None:
        for name, entries in self.text_encoders.items():
            where = self.folder / name / "config.json"
            kind = entries.get("model_type", "clip_text_model")
            if kind != "clip_text_model":
                raise ExportError(f"{where}: model_type is {kind!r}; supported: clip_text_model")
            if entries.get("use_attention_mask"):
                raise ExportError(f"{where}: use_attention_mask is true; only false is supported")
        widths = [entries.get("hidden_size", 512) for entries in self.text_encoders.values()]
        wanted = self.unet.get("cross_attention_dim", 1280)
        if sum(widths) != wanted:
            raise ExportError(
                f"{where}: hidden_size is {' + '.join(map(str, widths))}, "
                f"but the UNet's cross_attention_dim is {wanted}"
            )


def _preprocessor(folder: Path, index: Mapping[str, Any]) -> Preprocessor | None:
    """How the safety checker sees pictures, where the index names one."""
    if class_of(index, "safety_checker") is None:
        return None
    where = folder / "feature_extractor" / "preprocessor_config.json"
    try:
        _check_class(folder, index, "safety_checker", SAFETY_CHECKER)
        _weights(folder / "safety_checker", "safety_checker")
        read_json(folder / "safety_checker" / "config.json")
        return read_preprocessor(where, read_json(where))
    except ExportError as exc:
        raise ExportError(
            f"{exc}; the checkpoint names a safety checker, safety_checker=False "
            "(--no-safety-checker) leaves it out"
        ) from exc


def _check_class(folder: Path, index: Mapping[str, Any], name: str, *allowed: str) -> None:
    found = class_of(index, name)
    if found not in allowed:
        raise ExportError(
            f"{folder / 'model_index.json'}: {name} is {found!r}; supported: {', '.join(allowed)}"
        )


def _weights(folder: Path, name: str) -> list[Path]:
    return find_weights(folder, WEIGHT_STEMS[name])


def find_weights(folder: Path, stem: str) -> list[Path]:
    """The weight files in a network's folder: the plain ones, else the fp16 variant's.

    Raises:
        ExportError: When there are none, or pickled ones only.
    """
    for suffix in ("", ".fp16"):
        whole = folder / f"{stem}{suffix}.safetensors"
        shards = sorted(folder.glob(f"{stem}{suffix}-?????-of-?????.safetensors"))
        # transformers puts the variant before the shard's number, older diffusers behind it.
        shards += sorted(folder.glob(f"{stem}-?????-of-?????{suffix or '.none'}.safetensors"))
        if whole.is_file() or shards:
            return [whole] if whole.is_file() else shards
    pickled = [file for file in sorted(folder.glob("*")) if file.suffix in _PICKLES]
    if pickled:
        raise ExportError(
            f"{pickled[0]}: is a pickle, which can run code when it is opened; "
            "only .safetensors weights are read, convert it first"
        )
    raise ExportError(
        f"{folder}: holds no weights; expected {stem}.safetensors or {stem}.fp16.safetensors"
    )


def _variant(folder: Path, name: str) -> str | None:
    return "fp16" if ".fp16" in _weights(folder, name)[0].name else None
