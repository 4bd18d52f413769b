"""Record what diffusers' schedulers do: ``python -m tests.engine.goldens.record``.

Writes schedulers.json: for each case the first and last timestep and some latents after a run
against a fixed model, and the versions it was recorded with. Needs the export extra.
"""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

from engine.schedulers import DIFFUSERS_CLASSES, diffusers_options
from tests.engine.schedulers_cases import CASES, LATENTS, Case, answer, first_noise

PATH = Path(__file__).parent / "schedulers.json"


def run_diffusers(case: Case) -> tuple[list[float], Any]:
    """Timesteps and final latents of diffusers' scheduler for a case."""
    import diffusers
    import torch

    config = {**case.config, **diffusers_options(case.scheduler)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, DIFFUSERS_CLASSES[case.scheduler]).from_config(config)
        scheduler.set_timesteps(case.steps)
        start = case.start * scheduler.order
        timesteps = scheduler.timesteps[start:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        noise = torch.from_numpy(first_noise())
        clean = torch.zeros_like(noise) + 0.5
        latents = noise * scheduler.init_noise_sigma
        if case.start:
            latents = scheduler.add_noise(clean, noise, timesteps[:1])
        generator = torch.Generator("cpu").manual_seed(case.steps)
        known = inspect.signature(scheduler.step).parameters
        extra: dict[str, Any] = {"generator": generator} if "generator" in known else {}
        if "eta" in known:
            extra["eta"] = 0.0  # as the pipelines do
        for t in timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            prediction = torch.from_numpy(answer(scaled.numpy(), float(t)))
            latents = scheduler.step(prediction, t, latents, return_dict=False, **extra)[0]
    return timesteps.tolist(), latents.numpy()


def main() -> None:
    """Record every case."""
    import diffusers
    import torch

    records = []
    for case in CASES:
        timesteps, latents = run_diffusers(case)
        records.append(
            {
                "case": case.name,
                "timesteps": [round(t, 4) for t in (timesteps[0], timesteps[-1])],
                "latents": [round(x, 5) for x in latents.ravel()[:LATENTS].tolist()],
            }
        )
    versions = {"diffusers": diffusers.__version__, "torch": torch.__version__}
    text = json.dumps({"versions": versions, "records": records}, indent=None)
    PATH.write_text(text.replace('{"case"', '\n{"case"') + "\n")


if __name__ == "__main__":
    main()
