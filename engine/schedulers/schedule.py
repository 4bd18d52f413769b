"""What a schedule is, and the one pure step that serves every sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Latents = npt.NDArray[np.float32]

HISTORY: Final = 5
"""How many steps a solver may remember."""


Weights = tuple[tuple[int, np.float32], ...]
"""What is not 0 of a row of weights, by index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The coefficients of one step, ready to be used."""

    timestep: float
    input_scale: float
    remember: tuple[np.float32, np.float32]
    latents: np.float32
    history: Weights
    noise: np.float32 | None
    corrector: tuple[np.float32, Weights] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """The coefficients of ``n`` steps, read-only; see the module for the formula.

    Attributes:
        timesteps: (n,) what the UNet is told.
        input_scale: (n,) the latents are multiplied by it before the UNet sees them.
        denoised: (n, 2) the clean latents foreseen at step i are ``d[0] x + d[1] m``.
        remember: (n, 2) P and Q.
        latents: (n,) A.
        history: (n, 5) B.
        noise: (n,) N; no noise is drawn where it is 0.
        corrector: (n, 6) C. Where a row is not all 0, ``x`` stands for the latents that the step
            before began with, corrected: ``C[0] x_before + sum_k C[1 + k] h_(i-k)``.
        noising: (n, 2) clean latents are brought to step i by ``s[0] x0 + s[1] z``.
        init_noise_sigma: Standard deviation of the latents a run from pure noise begins with.
        moves: The same step by step.
    """

    timesteps: Array
    input_scale: Array
    denoised: Array
    remember: Array
    latents: Array
    history: Array
    noise: Array
    corrector: Array
    noising: Array
    init_noise_sigma: float
    moves: tuple[Move, ...] = field(init=False)

    def __post_init__(self) -> None:
        for array in (self.timesteps, self.input_scale, self.denoised, self.remember, self.latents):
            array.flags.writeable = False
        for array in (self.history, self.noise, self.corrector, self.noising):
            array.flags.writeable = False
        object.__setattr__(self, "moves", tuple(map(self._move, range(len(self)))))

    def _move(self, i: int) -> Move:
        corrector, noise = self.corrector[i], self.noise[i]
        return Move(
            timestep=float(self.timesteps[i]),
            input_scale=float(self.input_scale[i]),
            remember=_pair(self.remember[i]),
            latents=np.float32(self.latents[i]),
            history=_weights(self.history[i]),
            noise=np.float32(noise) if noise else None,
            corrector=(
                (np.float32(corrector[0]), _weights(corrector[1:])) if corrector.any() else None
            ),
        )

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolverState:
    """Where a run stands: the latents, those the last step began with, and h of the last steps."""

    latents: Latents
    previous: Latents | None = None
    history: tuple[Latents, ...] = ()


class Room:
    """Arrays of one latent shape that steps use again and again, so that none is allocated."""

    def __init__(self, like: Latents) -> None:
        self.term: Final = np.empty_like(like)
        """Scratch for one term of a sum."""
        self._free: list[Latents] = []

    def take(self) -> Latents:
        """An array whose values mean nothing."""
        return self._free.pop() if self._free else np.empty_like(self.term)

    def give_back(self, array: Latents) -> None:
        """Nobody reads it any more."""
        self._free.append(array)


def step(
    schedule: Schedule,
    i: int,
    state: SolverState,
    noise_pred: Latents,
    noise: Latents | None,
    room: Room | None = None,
) -> SolverState:
    """Do step ``i``: latents at ``timesteps[i]`` to latents at ``timesteps[i + 1]``.

    Args:
        schedule: The coefficients.
        i: Index of the step, 0 to ``len(schedule) - 1``.
        state: The state before the step; it is not changed.
        noise_pred: The UNet's output after guidance, of the latents' shape.
        noise: Fresh normal noise of the latents' shape where ``schedule.noise[i]`` is not 0.
        room: Where the new state is made; what the old state holds and the new one does not is
            used again there by later steps, so the old state must not be used afterwards.

    Returns:
        The state after the step; it shares no memory with ``noise_pred``.
    """
    room = Room(state.latents) if room is None else room
    x, term, move = state.latents, room.term, schedule.moves[i]
    remembered = _mix(move.remember, x, noise_pred, out=room.take(), term=term)
    history = (remembered, *state.history[: HISTORY - 1])
    base = x
    if move.corrector is not None:
        assert state.previous is not None
        base = np.multiply(state.previous, move.corrector[0], out=room.take())
        _add(base, move.corrector[1], history, term)
    new = np.multiply(base, move.latents, out=room.take())
    _add(new, move.history, history, term)
    if move.noise is not None:
        assert noise is not None
        new += np.multiply(noise, move.noise, out=term)
    gone = (None if base is x else x, state.previous, *state.history[HISTORY - 1 :])
    for old in gone:
        if old is not None:
            room.give_back(old)
    return SolverState(latents=new, previous=base, history=history)


def _add(to: Latents, weights: Weights, history: tuple[Latents, ...], term: Latents) -> None:
    """Add the weighted h of the last steps, with the help of ``term``."""
    for k, weight in weights:
        if k < len(history):
            to += np.multiply(history[k], weight, out=term)


def _weights(row: Array) -> Weights:
    return tuple((k, np.float32(weight)) for k, weight in enumerate(row) if weight)


def denoised(schedule: Schedule, i: int, latents: Latents, noise_pred: Latents) -> Latents:
    """The clean latents foreseen at step ``i``, for previews."""
    return _mix(_pair(schedule.denoised[i]), latents, noise_pred)


def add_noise(
    schedule: Schedule, i: int, clean: Latents, noise: Latents, room: Room | None = None
) -> Latents:
    """Bring clean latents to the noise level at which step ``i`` starts, in a new array or in one
    that is taken from a room."""
    out, term = (None, None) if room is None else (room.take(), room.term)
    return _mix(_pair(schedule.noising[i]), clean, noise, out=out, term=term)


def _pair(weights: Array) -> tuple[np.float32, np.float32]:
    return np.float32(weights[0]), np.float32(weights[1])


def _mix(
    weights: tuple[np.float32, np.float32],
    a: Latents,
    b: Latents,
    *,
    out: Latents | None = None,
    term: Latents | None = None,
) -> Latents:
    """``weights[0] a + weights[1] b`` in float32, without touching ``a`` where its weight is 0.

    The sum is made in ``out`` with the help of ``term``, or in new arrays.
    """
    first, second = weights
    if first == 0.0:
        return np.multiply(b, second, out=out)
    mixed = np.multiply(a, first, out=out)
    mixed += np.multiply(b, second, out=term)
    return mixed
