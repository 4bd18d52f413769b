"""A second, faster decoder for the bundle: a tiny autoencoder in the layout diffusers saves.

TAESD (``AutoencoderTiny``) is made for the latents as the UNet sees them, so its scaling factor is
1 where the full autoencoder's is 0.18215; the bundle keeps it beside the decoder. Its
``latent_magnitude`` and ``latent_shift`` say how latents are packed into eight bits, and take no
part in decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.bundle import FAST_DECODER, VAE_SCALE_FACTOR, FileRecord, Latents
from export.checkpoint import Checkpoint, find_weights
from export.entries import read_json, require_factor, require_list, require_whole
from export.errors import ExportError

if TYPE_CHECKING:
    from export.networks import Network

KIND: Final = "AutoencoderTiny"
_STEM: Final = "diffusion_pytorch_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class FastVae:
    """The folder of an ``AutoencoderTiny`` that fits a checkpoint."""

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path, checkpoint: Checkpoint) -> FastVae:
        """Read and check a folder; no weights are loaded.

        Raises:
            ExportError: With what was found and what is supported.
        """
        where = folder / "config.json"
        config = read_json(where)
        if config.get("_class_name") != KIND:
            found = config.get("_class_name")
            raise ExportError(f"{where}: _class_name is {found!r}; supported: {KIND}")
        require_whole(where, config, "latent_channels")
        require_factor(where, config, "scaling_factor")
        require_list(where, config, "num_decoder_blocks", smallest=0)
        channels, needed = (vae.get("latent_channels", 4) for vae in (config, checkpoint.vae))
        if channels != needed:
            raise ExportError(
                f"{where}: latent_channels is {channels}; the checkpoint's autoencoder has {needed}"
            )
        factor = 2 ** (len(config.get("num_decoder_blocks", (3, 3, 3, 1))) - 1)
        if factor != VAE_SCALE_FACTOR:
            raise ExportError(
                f"{where}: one latent cell covers {factor} pixels; {VAE_SCALE_FACTOR} is supported"
            )
        return cls(folder=folder, config=config, weights=tuple(find_weights(folder, _STEM)))

    @property
    def latents(self) -> Latents:
        """What the decoder takes latents for."""
        return Latents(
            channels=int(self.config.get("latent_channels", 4)),
            scaling_factor=float(self.config.get("scaling_factor") or 1.0),
        )

    def digest(self) -> str:
        """SHA-256 over the SHA-256 sums of the weight files."""
        sums = (FileRecord.of(file).sha256 for file in self.weights)
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def network(self) -> Network:
        """The decoder, ready to be traced and checked."""
        from diffusers import AutoencoderTiny

        from export import networks

        variant = "fp16" if ".fp16" in self.weights[0].name else None
        model = networks.load(self.folder, AutoencoderTiny, variant=variant)
        return networks.decoder(FAST_DECODER, model, scaling_factor=self.latents.scaling_factor)
