"""The coefficients of each sampler; every function names its paper and equation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from engine.errors import BundleError, InputError
from engine.schedulers.noise_model import NoiseModel
from engine.schedulers.schedule import HISTORY, Array, Schedule


def _schedule(
    *,
    timesteps: Array,
    denoised: Array,
    latents: Array,
    history: Array,
    noising: Array,
    start: int,
    input_scale: Array | None = None,
    remember: Array | None = None,
    noise: Array | None = None,
    redo: npt.NDArray[np.bool_] | None = None,
    init_noise_sigma: float = 1.0,
) -> Schedule:
    """Fill in what most samplers leave out, and drop the leading steps."""
    n = len(timesteps)
    padded = np.zeros((n, HISTORY))
    padded[:, : history.shape[1]] = history
    return Schedule(
        timesteps=timesteps[start:],
        input_scale=(np.ones(n) if input_scale is None else input_scale)[start:],
        denoised=denoised[start:],
        remember=(denoised if remember is None else remember)[start:],
        latents=latents[start:],
        history=padded[start:],
        noise=(np.zeros(n) if noise is None else noise)[start:],
        redo=(np.zeros(n, bool) if redo is None else redo)[start:],
        noising=noising[start:],
        init_noise_sigma=init_noise_sigma,
    )


def _ddim(model: NoiseModel, n: int, start: int) -> Schedule:
    """DDIM, Song et al. 2020, equation 12 with eta = 0."""
    t = model.timesteps(n)
    a, a_next = model.a_at(t), model.a_at(t - model.train_steps // n)
    signal, noise = np.sqrt(a), np.sqrt(1.0 - a)
    A = np.sqrt(1.0 - a_next) / noise
    B = np.sqrt(a_next) - A * signal
    return _schedule(
        timesteps=t,
        denoised=model.denoised_from(signal, noise),
        latents=A,
        history=B[:, None],
        noising=np.stack([signal, noise], 1),
        start=start,
    )


def _euler(model: NoiseModel, n: int, start: int, *, ancestral: bool) -> Schedule:
    """Euler steps, Karras et al. 2022, algorithm 2; ancestral: k-diffusion's, eta = 1."""
    t, sigmas = _sigma_timesteps(model, n)
    ramp = model.spacing in ("linspace", "trailing")
    init = sigmas.max() if ramp else np.sqrt(sigmas.max() ** 2 + 1.0)
    now, to = sigmas[:-1], sigmas[1:]
    up = np.sqrt(to**2 * (now**2 - to**2) / now**2) if ancestral else np.zeros(n)
    down = np.sqrt(to**2 - up**2)
    return _schedule(
        timesteps=t,
        input_scale=1.0 / np.sqrt(now**2 + 1.0),
        denoised=model.denoised_from(np.ones(n), now),
        latents=down / now,
        history=(1.0 - down / now)[:, None],
        noise=up,
        noising=np.stack([np.ones(n), now], 1),
        init_noise_sigma=float(init),
        start=start,
    )


def _sigma_timesteps(model: NoiseModel, n: int) -> tuple[Array, Array]:
    """(n,) timesteps, fractional under linspace, and (n + 1,) sigmas ending in the final one."""
    t = model.timesteps(n)
    if model.spacing == "linspace":
        t = np.linspace(0, model.train_steps - 1, n, dtype=np.float32)[::-1].astype(np.float64)
    sigmas = np.interp(t, np.arange(model.train_steps), model.sigmas)
    if model.config.get("use_karras_sigmas"):
        sigmas = _karras(sigmas[-1], sigmas[0], n)
        t = _sigma_to_t(model, sigmas)
    return t, np.append(sigmas, _final_sigma(model))


def _final_sigma(model: NoiseModel) -> float:
    at_zero = model.config.get("final_sigmas_type", "zero") == "zero"
    return 0.0 if at_zero else float(model.sigmas[0])


def _karras(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0) -> Array:
    """Karras et al. 2022, equation 5."""
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.asarray((first + np.linspace(0, 1, n) * (last - first)) ** rho, np.float64)


def _sigma_to_t(model: NoiseModel, sigmas: Array) -> Array:
    """The timesteps whose sigmas these are, interpolated in log sigma."""
    t: Array = np.interp(np.log(sigmas), np.log(model.sigmas), np.arange(model.train_steps))
    return t


def _dpmpp_2m(model: NoiseModel, n: int, start: int) -> Schedule:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, midpoint form."""
    if model.name == "dpmpp_2m_karras":
        sigmas = _karras(model.sigmas[0], model.sigmas[-1], n)
        t = _sigma_to_t(model, sigmas).round()
    else:
        t = model.timesteps(n)
        if model.spacing == "linspace":
            steps = np.linspace(0, model.train_steps - 1, n + 1).round()
            t = np.asarray(steps[:0:-1], np.float64)
        elif model.spacing == "leading":
            ratio = model.train_steps // (n + 1)
            t = np.arange(n + 1, dtype=np.float64)[:0:-1] * ratio + model.offset
        sigmas = np.interp(t, np.arange(model.train_steps), model.sigmas)
    sigmas = np.append(sigmas, _final_sigma(model))
    alpha = 1.0 / np.sqrt(sigmas**2 + 1.0)
    sigma = sigmas * alpha
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)  # infinite at the end, where sigma is 0
    h = np.diff(lam)
    phi = alpha[1:] * (1.0 - np.exp(-h))
    B = np.stack([phi, np.zeros(n)], 1)
    first_order = np.zeros(n, bool)
    first_order[start] = True
    short = model.config["lower_order_final"] and n < 15
    if model.config["final_sigmas_type"] == "zero" or model.config["euler_at_final"] or short:
        first_order[-1] = True
    for i in np.flatnonzero(~first_order):
        if i > start:
            r = h[i - 1] / h[i]
            B[i] = phi[i] * (1.0 + 0.5 / r), -phi[i] * 0.5 / r
    return _schedule(
        timesteps=t,
        denoised=model.denoised_from(alpha[:-1], sigma[:-1]),
        latents=sigma[1:] / sigma[:-1],
        history=B,
        noising=np.stack([alpha[:-1], sigma[:-1]], 1),
        start=start,
    )


def _lcm(model: NoiseModel, n: int, start: int) -> Schedule:
    """Multistep consistency sampling, Luo et al. 2023 (LCM), algorithm 3."""
    original = int(model.config["original_inference_steps"])
    if original > model.train_steps:
        allowed = f"at most num_train_timesteps, {model.train_steps}"
        raise BundleError(f"scheduler config: original_inference_steps is {original}; {allowed}")
    if n > original:
        raise InputError("num_inference_steps", f"is {n}; lcm allows 1 to {original}")
    training = (np.arange(1, original + 1) * (model.train_steps // original) - 1)[::-1]
    t = training[np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)].astype(float)
    a, a_next = model.a_at(t), model.a_at(np.append(t[1:], t[-1]))
    a_next[-1] = 1.0  # the last step ends at the denoised latents, without noise
    scaled, sigma_data = t * model.config["timestep_scaling"], 0.5
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    c_out = scaled / np.sqrt(scaled**2 + sigma_data**2)
    signal, noise = np.sqrt(a), np.sqrt(1.0 - a)
    return _schedule(
        timesteps=t,
        denoised=model.denoised_from(signal, noise),
        latents=np.sqrt(a_next) * c_skip,
        history=(np.sqrt(a_next) * c_out)[:, None],
        noise=np.sqrt(1.0 - a_next),
        noising=np.stack([signal, noise], 1),
        start=start,
    )


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
    return _schedule(
        timesteps=t,
        denoised=model.denoised_from(signal, noise),
        remember=np.tile([0.0, 1.0], (len(t), 1)),
        latents=A,
        history=slope[:, None] * weights,
        redo=redo,
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
    "euler": partial(_euler, ancestral=False),
    "euler_a": partial(_euler, ancestral=True),
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_karras": _dpmpp_2m,
    "lcm": _lcm,
    "pndm": _pndm,
}
