"""The cases in which our schedulers are held against diffusers', and the model they run on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.schedulers import SCHEDULERS

WHOLE: Final = ("ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "lcm", "pndm")
"""Held against diffusers in every combination; the others in a part of them."""

LATENTS: Final = 8
"""How many of the final latents a golden keeps."""

BASE: Final[Mapping[str, Any]] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "steps_offset": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: a scheduler, its configuration, the number of steps and the first one made."""

    scheduler: str
    config: Mapping[str, Any]
    steps: int
    start: int

    @property
    def name(self) -> str:
        """Unique and readable."""
        changed = [f"{k}={v}" for k, v in self.config.items() if BASE.get(k) != v]
        return " ".join([self.scheduler, f"{self.steps} from {self.start}", *changed])


def first_noise() -> npt.NDArray[np.float32]:
    """(1, 4, 4, 4) latents to begin with."""
    return np.random.default_rng(7).standard_normal((1, 4, 4, 4)).astype(np.float32)


def answer(latents: npt.NDArray[np.float32], timestep: float) -> npt.NDArray[np.float32]:
    """A stand-in for the UNet: bounded, nonlinear, different at every timestep."""
    mix = np.random.default_rng(3).standard_normal((4, 4)).astype(np.float32) * 0.5
    mixed = np.einsum("ij,bjhw->bihw", mix, latents)
    return np.tanh(mixed + np.float32(np.sin(timestep / 100)))


def _cases() -> list[Case]:
    cases = []
    spacings = ("leading", "linspace", "trailing", None)
    predictions = ("epsilon", "v_prediction", "sample")
    runs = ((1, 0), (4, 0), (4, 1), (20, 0), (20, 6), (20, 13))
    for name, prediction, spacing, zero_snr, (steps, start) in itertools.product(
        SCHEDULERS, predictions, spacings, (False, True), runs
    ):
        if name not in WHOLE and (zero_snr or spacing is None) and (steps, start) != (20, 6):
            continue
        impossible = {
            "pndm": prediction == "sample" or zero_snr,
            "euler_a": prediction == "sample",  # diffusers has not written it
            "dpm2": prediction == "sample" or zero_snr,
            "dpm2_a": prediction == "sample" or zero_snr,
            "euler": name == "euler_karras" and zero_snr,  # sigma 4096 is beyond float32
            "heun": zero_snr,
            "lms": zero_snr,
            "deis": zero_snr,
            "ddim": zero_snr and prediction == "epsilon",
            "ddpm": zero_snr and prediction == "epsilon",
            "lcm": zero_snr and prediction == "epsilon",
            "tcd": zero_snr and prediction == "epsilon",
        }
        if impossible.get(name.removesuffix("_karras")):
            continue
        config = dict(BASE, prediction_type=prediction)
        if spacing is not None:
            config["timestep_spacing"] = spacing
        if zero_snr:
            config["rescale_betas_zero_snr"] = True
        if name == "pndm":
            config["skip_prk_steps"] = True
        cases.append(Case(scheduler=name, config=config, steps=steps, start=start))
    odd = ({"final_sigmas_type": "sigma_min"}, {"beta_schedule": "linear"}, {"steps_offset": 0})
    for name, change in itertools.product(("euler", "dpmpp_2m", "dpmpp_2m_karras"), odd):
        cases.append(Case(scheduler=name, config={**BASE, **change}, steps=7, start=0))
    cases.append(
        Case(scheduler="euler", config={**BASE, "use_karras_sigmas": True}, steps=9, start=2)
    )
    others = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_type": "bh2"}
    for name in ("ddim", "euler_a", "pndm", "lcm"):  # what is not theirs to read
        config = {**BASE, **others, "skip_prk_steps": True}
        cases.append(Case(scheduler=name, config=config, steps=6, start=0))
    for name, value in (("ddim", True), ("ddim", False), ("pndm", True), ("pndm", False)):
        config = {**BASE, "set_alpha_to_one": value, "skip_prk_steps": True}
        cases.append(Case(scheduler=name, config=config, steps=7, start=0))
    return cases


CASES: Final = _cases()
