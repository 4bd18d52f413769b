"""Samplers of one UNet call a step; every function names its paper and equation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final, Protocol

import numpy as np

from engine.errors import BundleError, InputError
from engine.schedulers.multistep import deis, dpmpp_2m, dpmpp_2m_sde, lms, unipc
from engine.schedulers.noise_model import NoiseModel
from engine.schedulers.parts import again, fill_in, first_sigma, sigma_timesteps
from engine.schedulers.schedule import HISTORY, Array, Schedule
from engine.schedulers.two_calls import dpm2, heun


def _ddim(model: NoiseModel, n: int, start: int) -> Schedule:
    """DDIM, Song et al. 2020, equation 12 with eta = 0."""
    t = model.timesteps(n)
    a, a_next = model.a_at(t), model.a_at(t - model.train_steps // n)
    signal, noise = np.sqrt(a), np.sqrt(1.0 - a)
    A = np.sqrt(1.0 - a_next) / noise
    B = np.sqrt(a_next) - A * signal
    return fill_in(
        timesteps=t,
        denoised=model.denoised_from(signal, noise),
        latents=A,
        history=B[:, None],
        noising=np.stack([signal, noise], 1),
        start=start,
    )


def _ddpm(model: NoiseModel, n: int, start: int) -> Schedule:
    """DDPM, Ho et al. 2020, equations 6 and 7, between the timesteps that are made."""
    t = model.timesteps(n)
    a = model.a_at(t)
    a_next = np.append(a[1:], 1.0)
    signal, noise = np.sqrt(a), np.sqrt(1.0 - a)
    beta = 1.0 - a / a_next
    small = model.config["variance_type"] == "fixed_small"
    spread = np.sqrt(beta * (1.0 - a_next) / (1.0 - a) if small else beta)
    spread[-1] = 0.0  # the last step ends at the denoised latents
    return fill_in(
        timesteps=t,
        denoised=model.denoised_from(signal, noise),
        latents=np.sqrt(a / a_next) * (1.0 - a_next) / (1.0 - a),
        history=(np.sqrt(a_next) * beta / (1.0 - a))[:, None],
        noise=spread,
        noising=np.stack([signal, noise], 1),
        start=start,
    )


def _euler(model: NoiseModel, n: int, start: int, *, ancestral: bool) -> Schedule:
    """Euler steps, Karras et al. 2022, algorithm 2; ancestral: k-diffusion's, eta = 1."""
    t, sigmas = sigma_timesteps(model, n)
    now, to = sigmas[:-1], sigmas[1:]
    up = np.sqrt(to**2 * (now**2 - to**2) / now**2) if ancestral else np.zeros(n)
    down = np.sqrt(to**2 - up**2)
    return fill_in(
        timesteps=t,
        input_scale=1.0 / np.sqrt(now**2 + 1.0),
        denoised=model.denoised_from(np.ones(n), now),
        latents=down / now,
        history=(1.0 - down / now)[:, None],
        noise=up,
        noising=np.stack([np.ones(n), now], 1),
        init_noise_sigma=first_sigma(model, sigmas),
        start=start,
    )


def _lcm(model: NoiseModel, n: int, start: int) -> Schedule:
    """Multistep consistency sampling, Luo et al. 2023 (LCM), algorithm 3."""
    t = _distilled_timesteps(model, n)
    a, a_next = model.a_at(t), model.a_at(np.append(t[1:], t[-1]))
    a_next[-1] = 1.0  # the last step ends at the denoised latents, without noise
    scaled, sigma_data = t * model.config["timestep_scaling"], 0.5
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    c_out = scaled / np.sqrt(scaled**2 + sigma_data**2)
    signal, noise = np.sqrt(a), np.sqrt(1.0 - a)
    return fill_in(
        timesteps=t,
        denoised=model.denoised_from(signal, noise),
        latents=np.sqrt(a_next) * c_skip,
        history=(np.sqrt(a_next) * c_out)[:, None],
        noise=np.sqrt(1.0 - a_next),
        noising=np.stack([signal, noise], 1),
        start=start,
    )


def _tcd(model: NoiseModel, n: int, start: int) -> Schedule:
    """Trajectory consistency sampling, Zheng et al. 2024 (TCD), algorithm 4 with gamma = 0, which
    is what diffusers' pipelines take where they are not told otherwise."""
    t = _distilled_timesteps(model, n)
    a, a_next = model.a_at(t), model.a_at(np.append(t[1:], 0.0))
    signal, noise = np.sqrt(a), np.sqrt(1.0 - a)
    A = np.sqrt(1.0 - a_next) / noise
    B = np.sqrt(a_next) - A * signal
    return fill_in(
        timesteps=t,
        denoised=model.denoised_from(signal, noise),
        latents=A,
        history=B[:, None],
        noising=np.stack([signal, noise], 1),
        start=start,
    )


def _distilled_timesteps(model: NoiseModel, n: int) -> Array:
    """(n,) of the timesteps that a consistency model was distilled at, evenly spread.

    Raises:
        BundleError: If the configuration has more of them than training timesteps.
        InputError: If more steps are asked for than there are.
    """
    original = int(model.config["original_inference_steps"])
    if original > model.train_steps:
        allowed = f"at most num_train_timesteps, {model.train_steps}"
        raise BundleError(f"scheduler config: original_inference_steps is {original}; {allowed}")
    if n > original:
        raise InputError("num_inference_steps", f"is {n}; {model.name} allows 1 to {original}")
    training = (np.arange(1, original + 1) * (model.train_steps // original) - 1)[::-1]
    chosen = np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)
    return np.asarray(training[chosen], np.float64)


def _pndm(model: NoiseModel, n: int, start: int) -> Schedule:
    """PLMS, Liu et al. 2022 (PNDM), formula 9 with the linear multistep of formula 12.

    The second step is made twice: the first estimate of its slope is averaged with the one at
    the point it led to. Counting begins anew where a run starts in the middle.
    """
    if model.prediction == "sample" or model.zero_snr:
        reason = "it needs noise or v prediction and a last timestep with signal"
        raise InputError("scheduler", f"pndm does not fit this bundle: {reason}")
    once = model.timesteps(n)
    t = np.concatenate([once[:1], once[1:2], once[1:]]) if n > 1 else once
    stride = model.train_steps // n
    count = np.arange(len(t)) - start
    redo = count == 1
    source, target = np.where(redo, t + stride, t), np.where(redo, t, t - stride)
    a, a_next = model.a_at(source), model.a_at(target)
    slope = -(a_next - a) / (a * np.sqrt(1 - a_next) + np.sqrt(a * (1 - a) * a_next))
    A, weights = np.sqrt(a_next / a), np.zeros((len(t), HISTORY))
    weights[start:] = _PLMS[np.minimum(count[start:], len(_PLMS) - 1)]
    if model.prediction == "v_prediction":
        A, slope = A + slope * np.sqrt(1 - a), slope * np.sqrt(a)
    signal, noise = np.sqrt(model.a_at(t)), np.sqrt(1.0 - model.a_at(t))
    return fill_in(
        timesteps=t,
        denoised=model.denoised_from(signal, noise),
        remember=np.tile([0.0, 1.0], (len(t), 1)),
        latents=A,
        history=slope[:, None] * weights,
        corrector=again(len(t), redo),
        noising=np.stack([signal, noise], 1),
        start=start,
    )


_PLMS: Final = np.array(
    [
        [1, 0, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0, 0],
        [3 / 2, 0, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 0, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, 0, -9 / 24],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24, 0],
    ]
)
"""Adams-Bashforth weights by step since the start; h of the step done twice is passed over."""


class Maker(Protocol):
    def __call__(self, model: NoiseModel, n: int, start: int) -> Schedule: ...


MAKERS: Final[Mapping[str, Maker]] = {
    "ddim": _ddim,
    "ddpm": _ddpm,
    "euler": partial(_euler, ancestral=False),
    "euler_karras": partial(_euler, ancestral=False),
    "euler_a": partial(_euler, ancestral=True),
    "heun": heun,
    "heun_karras": heun,
    "dpm2": partial(dpm2, ancestral=False),
    "dpm2_karras": partial(dpm2, ancestral=False),
    "dpm2_a": partial(dpm2, ancestral=True),
    "dpm2_a_karras": partial(dpm2, ancestral=True),
    "lms": lms,
    "lms_karras": lms,
    "pndm": _pndm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_karras": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_karras": dpmpp_2m_sde,
    "deis": deis,
    "unipc": unipc,
    "unipc_karras": unipc,
    "lcm": _lcm,
    "tcd": _tcd,
}
