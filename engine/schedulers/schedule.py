"""What a schedule is, and the one pure step that serves every sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Latents = npt.NDArray[np.float32]

HISTORY: Final = 5
"""How many steps a solver may remember."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """The coefficients of ``n`` steps; see the module for the formula.

    Attributes:
        timesteps: (n,) what the UNet is told.
        input_scale: (n,) the latents are multiplied by it before the UNet sees them.
        denoised: (n, 2) the clean latents foreseen at step i are ``d[0] x + d[1] m``.
        remember: (n, 2) P and Q.
        latents: (n,) A.
        history: (n, 5) B.
        noise: (n,) N; no noise is drawn where it is 0.
        redo: (n,) True where ``x`` stands for the latents before the previous step.
        noising: (n, 2) clean latents are brought to step i by ``s[0] x0 + s[1] z``.
        init_noise_sigma: Standard deviation of the latents a run from pure noise begins with.
    """

    timesteps: Array
    input_scale: Array
    denoised: Array
    remember: Array
    latents: Array
    history: Array
    noise: Array
    redo: npt.NDArray[np.bool_]
    noising: Array
    init_noise_sigma: float

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolverState:
    """Where a run stands: the latents, those before the last step, and h of the last steps."""

    latents: Latents
    previous: Latents | None = None
    history: tuple[Latents, ...] = ()


def step(
    schedule: Schedule, i: int, state: SolverState, noise_pred: Latents, noise: Latents | None
) -> SolverState:
    """Do step ``i``: latents at ``timesteps[i]`` to latents at ``timesteps[i + 1]``.

    Args:
        schedule: The coefficients.
        i: Index of the step, 0 to ``len(schedule) - 1``.
        state: The state before the step; it is not changed.
        noise_pred: The UNet's output after guidance, of the latents' shape.
        noise: Fresh normal noise of the latents' shape where ``schedule.noise[i]`` is not 0.
    """
    x = state.latents
    remembered = _mix(schedule.remember[i], x, noise_pred)
    history = (remembered, *state.history[: HISTORY - 1])
    base = x
    if schedule.redo[i]:
        assert state.previous is not None
        base = state.previous
    new = np.float32(schedule.latents[i]) * base
    for coefficient, h in zip(schedule.history[i], history, strict=False):
        if coefficient:
            new += np.float32(coefficient) * h
    if schedule.noise[i]:
        assert noise is not None
        new += np.float32(schedule.noise[i]) * noise
    return SolverState(latents=new, previous=x, history=history)


def denoised(schedule: Schedule, i: int, latents: Latents, noise_pred: Latents) -> Latents:
    """The clean latents foreseen at step ``i``, for previews."""
    return _mix(schedule.denoised[i], latents, noise_pred)


def add_noise(schedule: Schedule, i: int, clean: Latents, noise: Latents) -> Latents:
    """Bring clean latents to the noise level at which step ``i`` starts."""
    return _mix(schedule.noising[i], clean, noise)


def _mix(weights: Array, a: Latents, b: Latents) -> Latents:
    """``weights[0] a + weights[1] b`` in float32, without touching a term whose weight is 0."""
    first, second = np.float32(weights[0]), np.float32(weights[1])
    if first == 0.0:
        return b if second == 1.0 else second * b
    return first * a + second * b
