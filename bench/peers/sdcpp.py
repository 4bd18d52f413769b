"""stable-diffusion.cpp through stable-diffusion-cpp-python: float32, its convolutions float16."""

from __future__ import annotations

from typing import ClassVar, Final

from bench.peers.job import Item, Job, Pixels, Runner

METHODS: Final = {"lcm": "lcm", "euler": "euler", "euler_a": "euler_a", "dpmpp_2m": "dpm++2m"}
"""Its sampling method for each of Edgefill's names that it has."""


class Peer(Runner):
    """See the module."""

    packages: ClassVar = ("stable-diffusion-cpp-python", "numpy")

    def __init__(self, job: Job) -> None:
        from stable_diffusion_cpp import StableDiffusion

        if job.scheduler not in METHODS:
            allowed = ", ".join(METHODS)
            raise ValueError(f"has no sampling method {job.scheduler}; it has {allowed}")
        self._model = StableDiffusion(
            model_path=job.model,
            n_threads=job.threads,
            rng_type="cpu",
            sampler_rng_type="cpu",
            verbose=True,
        )
        self._job = job

    def paint(self, item: Item) -> Pixels:
        """See ``Runner.paint``."""
        import numpy as np
        from PIL import Image

        job = self._job
        images = self._model.generate_image(
            prompt=item.prompt,
            init_image=Image.fromarray(item.image),
            mask_image=Image.fromarray(item.mask),
            width=job.width,
            height=job.height,
            sample_method=METHODS[job.scheduler],
            sample_steps=job.steps,
            cfg_scale=job.guidance,
            strength=1.0,
            seed=item.seed,
        )
        return np.asarray(images[0].convert("RGB"))
