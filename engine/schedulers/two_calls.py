"""Samplers that ask the UNet twice a step: at the step's begin, and at a point found from there.

The second call's latents are those before the first (``corrector``), so that each call is a step of
the batching loop like any other. ``start`` counts steps, of two calls each; the last has one.
"""

from __future__ import annotations

import numpy as np

from engine.schedulers.noise_model import NoiseModel
from engine.schedulers.parts import (
    again,
    fill_in,
    first_sigma,
    require_signal,
    sigma_timesteps,
    sigma_to_t,
)
from engine.schedulers.schedule import Array, Schedule


def heun(model: NoiseModel, n: int, start: int) -> Schedule:
    """Heun's method, Karras et al. 2022, algorithm 1 without churn."""
    require_signal(model)
    t, sigmas = sigma_timesteps(model, n)
    step = np.diff(sigmas)
    weights = np.zeros((2 * n - 1, 2))
    weights[::2, 0] = step
    weights[1::2] = step[:-1, None] / 2
    return _in_turns(
        model,
        timesteps=_interleaved(t, t[1:]),
        sigmas=_interleaved(sigmas[:-1], sigmas[1:-1]),
        weights=weights,
        init_noise_sigma=first_sigma(model, sigmas),
        start=start,
    )


def dpm2(model: NoiseModel, n: int, start: int, *, ancestral: bool) -> Schedule:
    """DPM-Solver-2, Lu et al. 2022, algorithm 1, in sigma: the midpoint method in log sigma.

    Ancestral: k-diffusion's, eta = 1.
    """
    require_signal(model)
    t, sigmas = sigma_timesteps(model, n)
    if model.karras:
        t = t.round()
    now, to = sigmas[:-1], sigmas[1:]
    up = np.sqrt(to**2 * (now**2 - to**2) / now**2) if ancestral else np.zeros(n)
    down = np.sqrt(to**2 - up**2)
    middle = np.sqrt(now * down)  # 0 in the last step, which has one call
    weights = np.zeros((2 * n - 1, 1))
    weights[::2, 0] = middle - now
    weights[1::2, 0] = (down - now)[:-1]
    noise = np.zeros(2 * n - 1)
    noise[1::2] = up[:-1]
    return _in_turns(
        model,
        timesteps=_interleaved(t, sigma_to_t(model, middle[:-1])),
        sigmas=_interleaved(now, middle[:-1]),
        known=_interleaved(now, to[:-1]),
        weights=weights,
        noise=noise,
        init_noise_sigma=first_sigma(model, sigmas),
        start=start,
    )


def _in_turns(
    model: NoiseModel,
    *,
    timesteps: Array,
    sigmas: Array,
    weights: Array,
    init_noise_sigma: float,
    start: int,
    known: Array | None = None,
    noise: Array | None = None,
) -> Schedule:
    """The schedule of calls that remember the derivative, (x - x0) / sigma, Karras' d.

    Args:
        known: The noise that the known part of a picture is put back with, where a UNet has no
            inpainting channels: diffusers takes the sigma after the midpoint for the midpoint's.
    """
    calls = len(timesteps)
    denoised = model.denoised_from(np.ones(calls), sigmas)
    return fill_in(
        timesteps=timesteps,
        input_scale=1.0 / np.sqrt(sigmas**2 + 1.0),
        denoised=denoised,
        remember=(np.array([1.0, 0.0]) - denoised) / sigmas[:, None],
        latents=np.ones(calls),
        history=weights,
        noise=noise,
        corrector=again(calls, np.arange(calls) % 2 == 1),
        noising=np.stack([np.ones(calls), sigmas if known is None else known], 1),
        init_noise_sigma=init_noise_sigma,
        start=2 * start,
    )


def _interleaved(first: Array, second: Array) -> Array:
    """The values of the first calls, (n,), and between them those of the second, (n - 1,)."""
    both = np.empty(len(first) + len(second))
    both[::2], both[1::2] = first, second
    return both
