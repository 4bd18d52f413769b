"""A single-file checkpoint in the original layout, laid out as a diffusers folder.

Stable Diffusion 1.x and 2.x, as CompVis and Stability wrote them and as most fine-tuned models are
handed on: ``model.diffusion_model.*``, ``first_stage_model.*`` and ``cond_stage_model.*`` in one
safetensors file. Nothing is fetched: names are translated by ``export.original_names``, and the
configurations are read off the shapes by ``export.original_configs``. Weights under ``model_ema``
are left aside, as diffusers leaves them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.bundle import FileRecord
from export import original_configs as configs
from export import original_names as names
from export.clip_vocabulary import write_clip_tokenizer
from export.entries import write_json
from export.errors import ExportError
from export.weight_file import DTYPES, Tensor, WeightFile

PREDICTION_TYPES: Final = ("epsilon", "v_prediction")

_UNET: Final = "model.diffusion_model."
_VAE: Final = "first_stage_model."
_CLIP: Final = "cond_stage_model.transformer."
_OPEN_CLIP: Final = "cond_stage_model.model."
_PIPELINES: Final = {4: "StableDiffusionPipeline", 9: "StableDiffusionInpaintPipeline"}
_OTHERS: Final = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "lora_": "a LoRA, which --lora fuses into a checkpoint",
    "control_model.": "a ControlNet",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "model.diffusion_model.label_emb.": "a model with class embeddings",
    "down_blocks.": "a UNet in diffusers' layout",
}
_UNUSED: Final = re.compile(
    r"(text_model\.)?embeddings\.position_ids|logit_scale|text_projection|attn_mask|"
    r"loss\..*|model_ema\..*"
)
"""Buffers, and parts of CLIP and of the autoencoder's training that take no part here."""
_FIRST_NORM: Final = r"input_blocks\.\d+\.0\.in_layers\.0\.weight"
_DOWNSAMPLER: Final = r"input_blocks\.\d+\.0\.op\.weight"

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A single-file checkpoint, its names translated; no weights are loaded.

    Attributes:
        file: The file's header.
        second: Whether it is of Stable Diffusion 2.x, by its text encoder.
        unet: The tensors of the UNet, by diffusers' names.
        vae: Those of the autoencoder; empty where the file has none.
        text_encoder: Those of the text encoder.
    """

    file: WeightFile
    second: bool
    unet: Mapping[str, Tensor]
    vae: Mapping[str, Tensor]
    text_encoder: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> Original:
        """Read the header and translate it.

        Raises:
            ExportError: When the file is no single-file checkpoint of a supported family.
        """
        file = WeightFile.open(path)
        for start, what in _OTHERS.items():
            if any(name.startswith(start) for name in file.tensors):
                raise ExportError(
                    f"{path}: is {what}; single files of Stable Diffusion 1.x and 2.x are supported"
                )
        second = not _under(file, _CLIP) and bool(_under(file, _OPEN_CLIP))
        text = _under(file, start := _OPEN_CLIP if second else _CLIP)
        for prefix, found in ((_UNET, _under(file, _UNET)), (start, text)):
            if not found:
                raise ExportError(
                    f"{path}: holds no {prefix}*; a whole checkpoint in the original layout of "
                    "Stable Diffusion 1.x or 2.x is needed, or a diffusers folder"
                )
        clip = names.open_clip_name if second else names.clip_name
        encoder = _translated(path, start, text, clip)
        return cls(
            file=file,
            second=second,
            unet=_unet(path, _under(file, _UNET)),
            vae=_vae(path, _under(file, _VAE), start=_VAE),
            text_encoder=_penultimate(encoder) if second else encoder,
        )

    def prediction_type(self, given: str | None) -> str:
        """What the UNet predicts: as given, as the file says, or as the whole family does.

        Raises:
            ExportError: For Stable Diffusion 2.x with 4 channels that does not say; both exist.
        """
        if given is not None:
            if given not in PREDICTION_TYPES:
                raise ExportError(
                    f"prediction_type is {given!r}; allowed: {', '.join(PREDICTION_TYPES)}"
                )
            return given
        said = self.file.metadata.get("modelspec.prediction_type")
        known = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
        if said in known:
            return known[said]
        if "v_pred" in self.file.tensors:
            return "v_prediction"
        if self.second and self.channels == 4:
            raise ExportError(
                f"{self.file.path}: is Stable Diffusion 2.x with 4 channels and does not say what "
                "it predicts; prediction_type (--prediction-type) is epsilon for those made from "
                "the base model of 512 pixels, v_prediction for those made from that of 768"
            )
        return "epsilon"

    @property
    def channels(self) -> int:
        """Input channels of the UNet."""
        return self.unet["conv_in.weight"].shape[1]

    def write(
        self,
        folder: Path,
        *,
        prediction_type: str | None = None,
        tokenizer: Path | None = None,
        vae: bool = True,
    ) -> Path:
        """Write a diffusers folder of the same weights.

        Args:
            folder: Where it goes; takes the file's size on the disk.
            prediction_type: What the UNet predicts, where the file does not say.
            tokenizer: CLIP's vocabulary; see ``export.clip_vocabulary``.
            vae: Whether the file's autoencoder is wanted.

        Returns:
            The folder.

        Raises:
            ExportError: When something of it is not there, or not known.
        """
        path, where = self.file.path, str(self.file.path)
        if self.channels not in _PIPELINES:
            raise ExportError(
                f"{path}: the UNet takes {self.channels} channels; 4 (plain) and 9 (inpainting) "
                "are supported"
            )
        if vae and not self.vae:
            raise ExportError(
                f"{path}: holds no autoencoder ({_VAE}*); name the folder of one, vae (--vae)"
            )
        prediction = self.prediction_type(prediction_type)
        encoder = configs.text_encoder(where, self.text_encoder, second=self.second)
        write_clip_tokenizer(
            tokenizer,
            folder / "tokenizer",
            length=encoder["max_position_embeddings"],
            second=self.second,
        )
        size = 768 if self.second and prediction == "v_prediction" else 512
        parts = [
            ("text_encoder", "model", encoder, self.text_encoder),
            (
                "unet",
                "diffusion_pytorch_model",
                configs.unet(where, self.unet, second=self.second, size=size),
                self.unet,
            ),
        ]
        if vae:
            parts.append(("vae", "diffusion_pytorch_model", configs.vae(where, self.vae), self.vae))
        for name, stem, config, tensors in parts:
            write_json(folder / name / "config.json", config)
            self.file.write(folder / name / f"{stem}.safetensors", tensors)
        write_json(folder / "scheduler" / "scheduler_config.json", configs.scheduler(prediction))
        write_json(folder / "model_index.json", configs.index(_PIPELINES[self.channels]))
        return folder

    def digest(self) -> str:
        """SHA-256 of the file."""
        return FileRecord.of(self.file.path).sha256


def write_vae(path: Path, folder: Path) -> Path:
    """Lay the single file of an autoencoder out as a diffusers folder.

    Its names are those of the original layout, alone or as a whole checkpoint has them.

    Raises:
        ExportError: When it holds no such autoencoder.
    """
    file = WeightFile.open(path)
    start = _VAE if _under(file, _VAE) else ""
    found = _under(file, start)
    if "decoder.conv_in.weight" not in found:
        raise ExportError(
            f"{path}: holds no autoencoder in the original layout (decoder.conv_in.weight); name "
            "such a file, or a diffusers folder"
        )
    tensors = _vae(path, found, start=start)
    write_json(folder / "config.json", configs.vae(str(path), tensors))
    file.write(folder / "diffusion_pytorch_model.safetensors", tensors)
    return folder


def _vae(path: Path, found: Tensors, *, start: str) -> Tensors:
    """The tensors of an autoencoder in the original layout, by diffusers' names."""
    levels = len({name.split(".")[2] for name in found if name.startswith("encoder.down.")})
    tensors = _translated(path, start, found, lambda name: names.vae_name(name, levels=levels))
    for name, tensor in tensors.items():
        if ".attentions." in name and len(tensor.shape) > 2:  # convolutions of one place
            tensors[name] = tensor.reshaped(*tensor.shape[:2])
    return tensors


def _under(file: WeightFile, start: str) -> Tensors:
    """The tensors whose names begin so, by the rest of their names, those of no use left out.

    Raises:
        ExportError: When one of them is of a type that is not read.
    """
    found = {}
    for name, tensor in file.tensors.items():
        rest = name.removeprefix(start)
        if not name.startswith(start) or _UNUSED.fullmatch(rest):
            continue
        if tensor.dtype not in DTYPES:
            raise ExportError(
                f"{file.path}: {name} is of type {tensor.dtype}; supported: {', '.join(DTYPES)}"
            )
        found[rest] = tensor
    return found


def _unet(path: Path, found: Tensors) -> Tensors:
    blocks = len([name for name in found if re.fullmatch(_FIRST_NORM, name)])
    levels = len([name for name in found if re.fullmatch(_DOWNSAMPLER, name)]) + 1
    return _translated(
        path, _UNET, found, lambda name: names.unet_name(name, layers=blocks // levels)
    )


def _translated(
    path: Path, start: str, found: Tensors, translate: Callable[[str], str | None]
) -> Tensors:
    tensors = {}
    for name, tensor in found.items():
        known = translate(name)
        if known is None:
            raise ExportError(
                f"{path}: {start}{name} is no weight of Stable Diffusion 1.x or 2.x in the "
                "original layout"
            )
        tensors[known] = tensor
    return tensors


def _penultimate(found: Tensors) -> Tensors:
    """The text encoder of Stable Diffusion 2.x, which ends before OpenCLIP's last layer."""
    last = max(int(name.split(".")[3]) for name in found if name.startswith(configs.LAYERS))
    tensors: Tensors = {}
    for name, tensor in found.items():
        if name.startswith(f"{configs.LAYERS}{last}."):
            continue
        joint = names.IN_PROJECTION.fullmatch(name)
        if joint is None:
            tensors[name] = tensor
            continue
        rows = tensor.shape[0] // 3
        for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
            tensors[f"{joint[1]}.{part}.{joint[2]}"] = tensor.rows(i * rows, (i + 1) * rows)
    return tensors
