"""Samplers that remember what earlier steps found; every function names its paper and equation."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.polynomial import Polynomial

from engine.schedulers.noise_model import NoiseModel
from engine.schedulers.parts import (
    fill_in,
    first_sigma,
    in_signal_and_noise,
    multistep_sigmas,
    require_signal,
    sigma_timesteps,
)
from engine.schedulers.schedule import HISTORY, Array, Schedule

_LMS_ORDER: Final = 4


def dpmpp_2m(model: NoiseModel, n: int, start: int) -> Schedule:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, midpoint form."""
    t, sigmas = multistep_sigmas(model, n)
    alpha, sigma, lam = in_signal_and_noise(sigmas)
    h = np.diff(lam)
    phi = alpha[1:] * (1.0 - np.exp(-h))
    return fill_in(
        timesteps=t,
        denoised=model.denoised_from(alpha[:-1], sigma[:-1]),
        latents=sigma[1:] / sigma[:-1],
        history=_second_order(model, phi, h, start),
        noising=np.stack([alpha[:-1], sigma[:-1]], 1),
        start=start,
    )


def dpmpp_2m_sde(model: NoiseModel, n: int, start: int) -> Schedule:
    """SDE-DPM-Solver++(2M), Lu et al. 2022, equation 19, midpoint form."""
    t, sigmas = multistep_sigmas(model, n)
    alpha, sigma, lam = in_signal_and_noise(sigmas)
    h = np.diff(lam)
    phi = alpha[1:] * (1.0 - np.exp(-2.0 * h))
    return fill_in(
        timesteps=t,
        denoised=model.denoised_from(alpha[:-1], sigma[:-1]),
        latents=sigma[1:] / sigma[:-1] * np.exp(-h),
        history=_second_order(model, phi, h, start),
        noise=sigma[1:] * np.sqrt(1.0 - np.exp(-2.0 * h)),
        noising=np.stack([alpha[:-1], sigma[:-1]], 1),
        start=start,
    )


def _second_order(model: NoiseModel, phi: Array, h: Array, start: int) -> Array:
    """(n, 2) weights of the clean latents foreseen now and before, extrapolated to the middle of
    the step where the solver may be of second order."""
    n = len(h)
    weights = np.stack([phi, np.zeros(n)], 1)
    first_order = np.zeros(n, bool)
    first_order[start] = True
    short = model.config["lower_order_final"] and n < 15
    if model.config["final_sigmas_type"] == "zero" or model.config["euler_at_final"] or short:
        first_order[-1] = True
    for i in np.flatnonzero(~first_order):
        if i > start:
            r = h[i - 1] / h[i]
            weights[i] = phi[i] * (1.0 + 0.5 / r), -phi[i] * 0.5 / r
    return weights


def lms(model: NoiseModel, n: int, start: int) -> Schedule:
    """Linear multistep in sigma (Adams-Bashforth with uneven steps), as k-diffusion's sample_lms.

    As in diffusers, a run that begins in the middle takes the weights of the steps that it has not
    made as if they had led nowhere.
    """
    require_signal(model)
    t, sigmas = sigma_timesteps(model, n)
    weights = np.zeros((n, _LMS_ORDER))
    for i in range(n):
        points = sigmas[max(0, i - _LMS_ORDER + 1) : i + 1][::-1]
        for k, point in enumerate(points):
            lines = (Polynomial([-o, 1.0]) / (point - o) for o in np.delete(points, k))
            area = math.prod(lines, start=Polynomial([1.0])).integ()
            weights[i, k] = area(sigmas[i + 1]) - area(sigmas[i])
    denoised = model.denoised_from(np.ones(n), sigmas[:-1])
    return fill_in(
        timesteps=t,
        input_scale=1.0 / np.sqrt(sigmas[:-1] ** 2 + 1.0),
        denoised=denoised,
        remember=(np.array([1.0, 0.0]) - denoised) / sigmas[:-1, None],
        latents=np.ones(n),
        history=weights,
        noising=np.stack([np.ones(n), sigmas[:-1]], 1),
        init_noise_sigma=first_sigma(model, sigmas),
        start=start,
    )


def deis(model: NoiseModel, n: int, start: int) -> Schedule:
    """DEIS in log rho, Zhang and Chen 2022, equation 15 with polynomials of degree 1."""
    require_signal(model)
    t, sigmas = multistep_sigmas(model, n)
    rho = np.append(sigmas[:-1], sigmas[-2] if model.karras else model.sigmas[0])
    alpha, sigma, _ = in_signal_and_noise(rho)
    weights = np.zeros((n, 2))
    weights[:, 0] = alpha[1:] * np.diff(rho)
    last = n - 1 if model.config["lower_order_final"] and n < 15 else n
    for i in range(start + 1, last):
        now, to, before = rho[i], rho[i + 1], rho[i - 1]
        weights[i, 0] = alpha[i + 1] * _log_line(now, to, one_at=now, zero_at=before)
        weights[i, 1] = alpha[i + 1] * _log_line(now, to, one_at=before, zero_at=now)
    denoised = model.denoised_from(alpha[:-1], sigma[:-1])
    remember = (np.array([1.0, 0.0]) - alpha[:-1, None] * denoised) / sigma[:-1, None]
    return fill_in(
        timesteps=t,
        denoised=denoised,
        remember=remember,
        latents=alpha[1:] / alpha[:-1],
        history=weights,
        noising=np.stack([alpha[:-1], sigma[:-1]], 1),
        start=start,
    )


def _log_line(begin: float, end: float, *, one_at: float, zero_at: float) -> float:
    """The integral from ``begin`` to ``end`` of the line in log rho that is 1 and 0 there."""

    def area(rho: float) -> float:
        return float(rho * (np.log(rho) - np.log(zero_at) - 1.0))

    return (area(end) - area(begin)) / float(np.log(one_at) - np.log(zero_at))


def unipc(model: NoiseModel, n: int, start: int) -> Schedule:
    """UniPC of order 2 on clean latents, Zhao et al. 2023, algorithms 5 and 6 (UniP and UniC).

    Once the UNet has spoken at a step, the latents it was asked at are found anew from those of
    the step before (``corrector``), and the next ones from these.
    """
    t, sigmas = multistep_sigmas(model, n)
    alpha, sigma, lam = in_signal_and_noise(sigmas)
    h = np.diff(lam)
    e = np.expm1(-h)
    scale = e if model.config["solver_type"] != "bh1" else -h
    ratio = sigma[1:] / sigma[:-1]
    steps = np.arange(n)
    order = np.minimum(np.minimum(2, n - steps), steps - start + 1)
    weights, corrector = np.zeros((n, 2)), np.zeros((n, 1 + HISTORY))
    for i in range(start, n):
        weights[i, 0] = -alpha[i + 1] * e[i]
        if order[i] == 2:
            half = alpha[i + 1] * scale[i] * 0.5 / (-h[i - 1] / h[i])
            weights[i] += half, -half
        if i > start:
            before = i - 1
            r = -h[before - 1] / h[before] if order[before] == 2 else None
            new, old = _unic(-h[before], scale[before], r)
            c = alpha[i] * scale[before]
            older = 0.0 if r is None else old / r
            corrector[i, 0] = ratio[before]
            corrector[i, 1] = -c * new
            corrector[i, 2] = -alpha[i] * e[before] + c * (new + older)
            corrector[i, 3] = -c * older
    return fill_in(
        timesteps=t,
        denoised=model.denoised_from(alpha[:-1], sigma[:-1]),
        latents=ratio,
        history=weights,
        corrector=corrector,
        noising=np.stack([alpha[:-1], sigma[:-1]], 1),
        start=start,
    )


def _unic(hh: float, scale: float, r: float | None) -> tuple[float, float]:
    """Weights of the corrector's differences: to the new point, and to the one before the last
    where there is one, at ``r`` steps from the last."""
    if r is None:
        return 0.5, 0.0
    first = np.expm1(hh) / hh - 1.0
    second = first / hh - 0.5
    old, new = np.linalg.solve([[1.0, 1.0], [r, 1.0]], [first / scale, 2.0 * second / scale])
    return float(new), float(old)
