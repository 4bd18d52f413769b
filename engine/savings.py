"""What a request gives up to cost less: the full decoder, late guidance, whole UNet runs, size.

All of it is off unless it is asked for, and each is a property of the request alone: with it too,
the picture does not depend on the company it was made in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.bundle import FAST_DECODER, SHALLOW_UNET, Bundle
from engine.errors import InputError
from engine.models import Models, VaeDecoder
from engine.plan import Vae
from engine.request import MIN_SIDE, WORKING_STEP, InpaintRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """The choices of one request; see the fields of the same names of ``InpaintRequest``."""

    vae: Vae = "full"
    guidance_share: float = 1.0
    deep_cache_interval: int = 1
    working_size: int | None = None

    @classmethod
    def of(cls, request: InpaintRequest, bundle: Bundle) -> Savings:
        """The choices of a request.

        Raises:
            InputError: If the bundle cannot do what it asks for.
        """
        chosen = cls(
            vae=request.vae,
            guidance_share=request.guidance_share,
            deep_cache_interval=request.deep_cache_interval,
            working_size=request.working_size,
        )
        chosen.refuse_unfit(bundle)
        return chosen

    def refuse_unfit(self, bundle: Bundle) -> None:
        """Say so when a bundle does not have the network, or is not made for the size.

        Raises:
            InputError: With the value and what is allowed.
        """
        if self.vae == "fast" and FAST_DECODER not in bundle.components:
            raise InputError("vae", "is 'fast', but the model has no fast decoder; allowed: full")
        if self.deep_cache_interval > 1 and SHALLOW_UNET not in bundle.components:
            value = self.deep_cache_interval
            reason = f"is {value}, but the model has no shallow UNet; allowed: 1"
            raise InputError("deep_cache_interval", reason)
        most = bundle.defaults.max_size
        if self.working_size is not None and self.working_size > most:
            allowed = f"a multiple of {WORKING_STEP} from {MIN_SIDE} to {most}"
            raise InputError("working_size", f"is {self.working_size}; this model allows {allowed}")

    def guided(self, step: int, *, steps: int) -> bool:
        """Whether a step of a run of so many is made with guidance, where there is any."""
        return step < math.ceil(steps * self.guidance_share - 1e-9)

    def shallow(self, step: int) -> bool:
        """Whether a step runs the UNet's outer layers alone."""
        return step % self.deep_cache_interval != 0

    def deep_features(
        self, bundle: Bundle, *, rows: int, shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32] | None:
        """Room for the deep features of so many rows of latents (1, C, h, w); None where all runs
        of the UNet are whole."""
        if self.deep_cache_interval == 1:
            return None
        return np.empty((rows, bundle.deep_channels, *shape[2:]), np.float32)

    def decoder(self, models: Models) -> VaeDecoder:
        """What makes the picture."""
        fast = models.vae_decoder_fast if self.vae == "fast" else None
        return models.vae_decoder if fast is None else fast
