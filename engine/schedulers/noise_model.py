"""The noise schedule a checkpoint was trained with, read from diffusers' scheduler config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.errors import BundleError, InputError
from engine.schedulers.schedule import Array

_KARRAS: Final = "_karras"
_ZERO_SNR: Final = 2.0**-24
"""What sigma-space samplers put for a = 0, so that the first sigma is not infinite."""


class NoiseModel:
    """The training-time noise schedule and the checkpoint's settings, read from its config."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self.name = name
        self.config: dict[str, Any] = {}
        own = _OWN[name.removesuffix(_KARRAS)]
        for key, (default, supported) in {**_COMMON, **own}.items():
            value = config.get(key, default)
            if supported and value not in supported:
                allowed = ", ".join(map(repr, supported))
                raise BundleError(f"scheduler config: {key} is {value!r}; supported: {allowed}")
            self.config[key] = value
        for key, (low, high) in _NUMBERS.items():
            if key in self.config and not _is_number(self.config[key], low, high):
                value = self.config[key]
                allowed = f"must be a number from {low:g} to {high:g}"
                raise BundleError(f"scheduler config: {key} is {value!r}; {allowed}")
        self.karras = name.endswith(_KARRAS) or bool(self.config.get("use_karras_sigmas"))
        self.train_steps = int(self.config["num_train_timesteps"])
        self.prediction: str = self.config["prediction_type"]
        self.spacing: str = self.config["timestep_spacing"]
        self.offset = int(self.config["steps_offset"])
        a = np.cumprod(1.0 - self._betas().astype(np.float64))
        self.zero_snr = bool(self.config["rescale_betas_zero_snr"])
        self.a = a.astype(np.float32).astype(np.float64)

    def _betas(self) -> npt.NDArray[np.float32]:
        first, last, n = self.config["beta_start"], self.config["beta_end"], self.train_steps
        trained = self.config["trained_betas"]
        if trained is not None:
            fits = isinstance(trained, list | tuple) and len(trained) == n
            if not fits or not all(_is_number(beta, 0, 1) for beta in trained):
                allowed = f"must be a list of {n} numbers from 0 to 1"
                raise BundleError(f"scheduler config: trained_betas {allowed}")
            betas = np.asarray(trained, np.float32)
        elif self.config["beta_schedule"] == "linear":
            betas = np.linspace(first, last, n, dtype=np.float32)
        else:
            betas = np.square(np.linspace(first**0.5, last**0.5, n, dtype=np.float32))
        if not self.config["rescale_betas_zero_snr"]:
            return np.asarray(betas, np.float32)
        # Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed",
        # algorithm 1: shift sqrt(a) so that the last is 0, scale so that the first stays.
        root = np.sqrt(np.cumprod(1.0 - betas.astype(np.float64)))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        alphas = root**2
        alphas[1:] /= root[:-1] ** 2
        return np.asarray(1.0 - alphas, np.float32)

    @property
    def sigmas(self) -> Array:
        """(train_steps,) noise to signal, finite even for a terminal signal of 0."""
        a = self.a.copy()
        if self.zero_snr:
            a[-1] = _ZERO_SNR
        return np.sqrt((1.0 - a) / a)

    def final_a(self) -> float:
        """The ``a`` that stands after the last timestep."""
        return 1.0 if self.config.get("set_alpha_to_one", True) else float(self.a[0])

    def a_at(self, t: Array) -> Array:
        """``a`` at integer timesteps; the final one below 0."""
        t = t.astype(np.int64)
        return np.where(t >= 0, self.a[np.maximum(t, 0)], self.final_a())

    def timesteps(self, n: int) -> Array:
        """The ``n`` descending timesteps of the spacings of Lin et al. 2023, table 2."""
        if self.spacing == "linspace":
            return np.asarray(np.linspace(0, self.train_steps - 1, n).round()[::-1], np.float64)
        if self.spacing == "leading":
            ratio = self.train_steps // n
            return np.arange(n, dtype=np.float64)[::-1] * ratio + self.offset
        # rounding can give arange one step too many, which diffusers runs at timestep -1
        descending = np.arange(self.train_steps, 0, -self.train_steps / n).round()[:n]
        return np.asarray(descending - 1.0, np.float64)

    def denoised_from(self, signal: Array, noise: Array) -> Array:
        """(n, 2) weights of (x, m) for x0 where x = signal x0 + noise eps."""
        zero, one = np.zeros_like(signal), np.ones_like(signal)
        if self.prediction == "sample":
            return np.stack([zero, one], 1)
        if self.prediction == "v_prediction":
            scale = signal**2 + noise**2  # 1 in the variance-preserving coordinates
            return np.stack([signal / scale, -noise / np.sqrt(scale)], 1)
        if self.name in ("ddim", "ddpm", "lcm", "tcd") and not signal.all():
            reason = "predicts noise, yet its last timestep holds no signal to find it in"
            raise InputError("scheduler", f"{self.name} does not fit this bundle: it {reason}")
        return np.stack([one / signal, -noise / signal], 1)


_Read = Mapping[str, tuple[Any, tuple[Any, ...]]]
"""What a sampler reads of a config: key, the default of diffusers' class of that name, and the
values that are supported (any where empty). Other keys are not its business, as in diffusers."""

_SPACINGS: Final = ("leading", "linspace", "trailing")
_SIGMAS: Final[_Read] = {
    "timestep_spacing": ("linspace", _SPACINGS),
    "final_sigmas_type": ("zero", ("zero", "sigma_min")),
    "use_exponential_sigmas": (False, (False, None)),
    "use_beta_sigmas": (False, (False, None)),
}
# diffusers' DDIM clips the foreseen latents to [-1, 1] where a config does not say. That is meant
# for pixels, and its Stable Diffusion pipelines switch it off; so does this table.
_UNCLIPPED: Final[_Read] = {
    "clip_sample": (False, (False,)),
    "thresholding": (False, (False,)),
    "set_alpha_to_one": (True, ()),
}
_DPM: Final[_Read] = {
    **_SIGMAS,
    "lower_order_final": (True, ()),
    "euler_at_final": (False, ()),
    "solver_type": ("midpoint", ("midpoint", "logrho", "bh1", "bh2")),
    "thresholding": (False, (False,)),
    "use_lu_lambdas": (False, (False, None)),
    "use_flow_sigmas": (False, (False, None)),
    "lambda_min_clipped": (-np.inf, (-np.inf,)),
}
_KARRAS_OR_NOT: Final[_Read] = {
    "timestep_spacing": ("linspace", _SPACINGS),
    "use_karras_sigmas": (False, (False, True, None)),
    "use_exponential_sigmas": (False, (False, None)),
    "use_beta_sigmas": (False, (False, None)),
}
_BETAS: Final[_Read] = {"beta_start": (0.00085, ()), "beta_end": (0.012, ())}
_DISTILLED: Final[_Read] = {
    **_UNCLIPPED,
    **_BETAS,
    "beta_schedule": ("scaled_linear", ("scaled_linear", "linear")),
    "original_inference_steps": (50, ()),
    "timestep_scaling": (10.0, ()),
}
_COMMON: Final[_Read] = {
    "num_train_timesteps": (1000, ()),
    "beta_start": (0.0001, ()),
    "beta_end": (0.02, ()),
    "beta_schedule": ("linear", ("scaled_linear", "linear")),
    "trained_betas": (None, ()),
    "prediction_type": ("epsilon", ("epsilon", "v_prediction", "sample")),
    "timestep_spacing": ("leading", _SPACINGS),
    "steps_offset": (0, ()),
    "rescale_betas_zero_snr": (False, (False, True)),
}
_OWN: Final[Mapping[str, _Read]] = {
    "ddim": _UNCLIPPED,
    "ddpm": {
        "clip_sample": (False, (False,)),
        "thresholding": (False, (False,)),
        "variance_type": ("fixed_small", ("fixed_small", "fixed_large")),
    },
    "euler": {
        **_SIGMAS,
        "use_karras_sigmas": (False, (False, True, None)),
        "interpolation_type": ("linear", ("linear",)),
        "timestep_type": ("discrete", ("discrete",)),
    },
    "euler_a": {"timestep_spacing": ("linspace", _SPACINGS)},
    "heun": {**_KARRAS_OR_NOT, **_BETAS, "clip_sample": (False, (False,))},
    "dpm2": {**_KARRAS_OR_NOT, **_BETAS},
    "dpm2_a": {**_KARRAS_OR_NOT, **_BETAS},
    "lms": _KARRAS_OR_NOT,
    "dpmpp_2m": _DPM,
    "dpmpp_2m_sde": _DPM,
    "deis": {
        **_KARRAS_OR_NOT,
        "lower_order_final": (True, ()),
        "solver_order": (2, (2,)),
        "thresholding": (False, (False,)),
        "use_flow_sigmas": (False, (False, None)),
    },
    "unipc": {
        **_SIGMAS,
        "use_karras_sigmas": (False, (False, True, None)),
        "lower_order_final": (True, (True,)),
        "solver_order": (2, (2,)),
        "solver_type": ("bh2", ("midpoint", "heun", "logrho", "bh1", "bh2")),
        "predict_x0": (True, (True,)),
        "disable_corrector": ([], ([],)),
        "thresholding": (False, (False,)),
        "use_flow_sigmas": (False, (False, None)),
    },
    "lcm": _DISTILLED,
    "tcd": _DISTILLED,
    "pndm": {"set_alpha_to_one": (False, ())},
}
_NUMBERS: Final = {
    "num_train_timesteps": (1, 100_000),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "steps_offset": (0, 1000),
    "original_inference_steps": (1, 100_000),
    "timestep_scaling": (0, 1e6),
}


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
