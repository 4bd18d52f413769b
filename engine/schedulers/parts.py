"""What the samplers are put together from: the filled-in schedule, and its noise levels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.schedulers.noise_model import NoiseModel
from engine.schedulers.schedule import HISTORY, Array, Schedule


def fill_in(
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
    corrector: Array | None = None,
    init_noise_sigma: float = 1.0,
) -> Schedule:
    """A schedule: what most samplers leave out filled in, its leading calls dropped."""
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
        corrector=(np.zeros((n, 1 + HISTORY)) if corrector is None else corrector)[start:],
        noising=noising[start:],
        init_noise_sigma=init_noise_sigma,
    )


def again(n: int, calls: npt.NDArray[np.bool_]) -> Array:
    """(n, 1 + HISTORY) corrector that goes back to the latents before the previous call, where
    ``calls`` is True."""
    corrector = np.zeros((n, 1 + HISTORY))
    corrector[calls, 0] = 1.0
    return corrector


def require_signal(model: NoiseModel) -> None:
    """Refuse a checkpoint whose last timestep holds no signal, for samplers that do not know it.

    Raises:
        InputError: If it is one.
    """
    if model.zero_snr:
        reason = "it needs a last timestep with signal"
        raise InputError("scheduler", f"{model.name} does not fit this bundle: {reason}")


def sigma_timesteps(model: NoiseModel, n: int) -> tuple[Array, Array]:
    """(n,) timesteps, fractional under linspace, and (n + 1,) sigmas ending in the final one."""
    t = model.timesteps(n)
    if model.spacing == "linspace":
        t = np.linspace(0, model.train_steps - 1, n, dtype=np.float32)[::-1].astype(np.float64)
    sigmas = np.interp(t, np.arange(model.train_steps), model.sigmas)
    if model.karras:
        sigmas = karras(sigmas[-1], sigmas[0], n)
        t = sigma_to_t(model, sigmas)
    return t, np.append(sigmas, final_sigma(model))


def multistep_sigmas(model: NoiseModel, n: int) -> tuple[Array, Array]:
    """(n,) whole timesteps as diffusers' multistep solvers space them, one step being left out at
    the end, and (n + 1,) sigmas ending in the final one."""
    if model.karras:
        sigmas = karras(model.sigmas[0], model.sigmas[-1], n)
        t = sigma_to_t(model, sigmas).round()
        return t, np.append(sigmas, final_sigma(model))
    t = model.timesteps(n)
    if model.spacing == "linspace":
        steps = np.linspace(0, model.train_steps - 1, n + 1).round()
        t = np.asarray(steps[:0:-1], np.float64)
    elif model.spacing == "leading":
        ratio = model.train_steps // (n + 1)
        t = np.arange(n + 1, dtype=np.float64)[:0:-1] * ratio + model.offset
    sigmas = np.interp(t, np.arange(model.train_steps), model.sigmas)
    return t, np.append(sigmas, final_sigma(model))


def final_sigma(model: NoiseModel) -> float:
    """The sigma that stands after the last timestep."""
    at_zero = model.config.get("final_sigmas_type", "zero") == "zero"
    return 0.0 if at_zero else float(model.sigmas[0])


def first_sigma(model: NoiseModel, sigmas: Array) -> float:
    """Standard deviation of the latents that a run in sigma's coordinates begins with."""
    ramp = model.spacing in ("linspace", "trailing")
    return float(sigmas.max() if ramp else np.sqrt(sigmas.max() ** 2 + 1.0))


def karras(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0) -> Array:
    """Karras et al. 2022, equation 5."""
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.asarray((first + np.linspace(0, 1, n) * (last - first)) ** rho, np.float64)


def sigma_to_t(model: NoiseModel, sigmas: Array) -> Array:
    """The timesteps whose sigmas these are, interpolated in log sigma."""
    t: Array = np.interp(np.log(sigmas), np.log(model.sigmas), np.arange(model.train_steps))
    return t


def in_signal_and_noise(sigmas: Array) -> tuple[Array, Array, Array]:
    """Sigmas as alpha and sigma of the variance-preserving coordinates, and the half logarithm of
    their signal-to-noise ratio, lambda, which is infinite where sigma is 0."""
    alpha = 1.0 / np.sqrt(sigmas**2 + 1.0)
    sigma = sigmas * alpha
    with np.errstate(divide="ignore"):
        return alpha, sigma, np.log(alpha) - np.log(sigma)
