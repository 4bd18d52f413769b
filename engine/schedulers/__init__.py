"""Schedulers as arrays of coefficients, and one pure step that serves them all.

Every sampler here is linear in what it has seen. With ``x`` the latents, ``m`` the UNet's output
and ``z`` fresh noise, step ``i`` is

    h_i  = P[i] x + Q[i] m                                   (what the solver remembers)
    x'   = A[i] x + sum_k B[i, k] h_(i-k) + N[i] z

so that a ``Schedule`` is data, ``step`` is a few lines, and rows of different samplers can share
one UNet call. Coefficients are worked out once per request in float64. Latents are kept in the
coordinates diffusers keeps them in (Euler: x = x0 + sigma z, all others: x = sqrt(a) x0 +
sqrt(1 - a) z), so that each intermediate value can be compared with diffusers'.

Notation: ``a`` is the cumulative product of the alphas (DDPM, Ho et al. 2020, equation 4),
``sigma = sqrt((1 - a) / a)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from engine.errors import InputError
from engine.schedulers.noise_model import NoiseModel
from engine.schedulers.samplers import MAKERS
from engine.schedulers.schedule import Room, Schedule, SolverState, add_noise, denoised, step

__all__ = [
    "DIFFUSERS_CLASSES",
    "SCHEDULERS",
    "Room",
    "Schedule",
    "SolverState",
    "add_noise",
    "calls_per_step",
    "denoised",
    "diffusers_options",
    "make_schedule",
    "step",
]

SCHEDULERS: Final = tuple(MAKERS)
"""The names a request may ask for."""

_KEPT: Final = 64
"""Schedules made last that are kept: most requests ask for the same few."""

DIFFUSERS_CLASSES: Final = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_karras": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "heun_karras": "HeunDiscreteScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_karras": "KDPM2DiscreteScheduler",
    "dpm2_a": "KDPM2AncestralDiscreteScheduler",
    "dpm2_a_karras": "KDPM2AncestralDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "lms_karras": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_karras": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde_karras": "DPMSolverMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "unipc_karras": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
"""diffusers' class for each name; ``diffusers_options`` says what it must be told."""


def diffusers_options(name: str) -> dict[str, Any]:
    """What diffusers' class must be told to be the scheduler of that name."""
    options: dict[str, Any] = {"use_karras_sigmas": True} if name.endswith("_karras") else {}
    if name.startswith("dpmpp_2m_sde"):
        options["algorithm_type"] = "sde-dpmsolver++"
    if name == "pndm":
        options["skip_prk_steps"] = True
    return options


def calls_per_step(name: str) -> int:
    """How often a sampler asks the UNet in one step; two in all but the last of some."""
    return 2 if name.startswith(("heun", "dpm2")) else 1


def make_schedule(
    name: str, config: Mapping[str, Any], *, num_inference_steps: int, start: int = 0
) -> Schedule:
    """Work out a schedule.

    Args:
        name: One of ``SCHEDULERS``.
        config: diffusers' scheduler configuration of the checkpoint. What it does not say takes
            the default of diffusers' class of that name, as ``Scheduler.from_config`` does, but
            for two settings that its pipelines correct: latents are never clipped, and pndm
            never makes the Runge-Kutta steps.
        num_inference_steps: Steps of the whole run.
        start: Leading steps to leave out (strength below 1).

    Raises:
        InputError: If the name is unknown, or the sampler cannot do that many steps or does not
            fit the checkpoint.
        BundleError: If the configuration holds something that is not supported.
    """
    if name not in MAKERS:
        raise InputError("scheduler", f"is {name!r}; allowed: {', '.join(SCHEDULERS)}")
    return _made(name, _Config(text=repr(config), values=config), num_inference_steps, start)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """A configuration that is known by what is written in it."""

    text: str
    values: Mapping[str, Any] = field(compare=False)


@lru_cache(maxsize=_KEPT)
def _made(name: str, config: _Config, num_inference_steps: int, start: int) -> Schedule:
    model = NoiseModel(config.values, name)
    if num_inference_steps > model.train_steps:
        allowed = f"{name} allows 1 to {model.train_steps}"
        raise InputError("num_inference_steps", f"is {num_inference_steps}; {allowed}")
    return MAKERS[name](model, num_inference_steps, start)
