"""diffusers' StableDiffusionInpaintPipeline on PyTorch, float32.

Options: ``compile`` (True: UNet and VAE decoder by ``torch.compile``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from bench.peers.job import Item, Job, Pixels, Runner


class Peer(Runner):
    """See the module."""

    packages: ClassVar = ("diffusers", "torch", "transformers", "accelerate", "numpy")

    def __init__(self, job: Job) -> None:
        import torch
        from diffusers import StableDiffusionInpaintPipeline

        torch.set_num_threads(job.threads)
        pipe = StableDiffusionInpaintPipeline.from_pretrained(
            job.model, safety_checker=None, requires_safety_checker=False
        )
        if job.options["compile"]:
            pipe.unet = torch.compile(pipe.unet)
            pipe.vae.decode = torch.compile(pipe.vae.decode)
        self._pipe = scheduled(pipe, job)
        self._job = job

    def paint(self, item: Item) -> Pixels:
        """See ``Runner.paint``."""
        return paint(self._pipe, self._job, item)


def scheduled(pipe: Any, job: Job) -> Any:
    """A pipeline of diffusers' kind with the job's scheduler and no progress bar."""
    import diffusers

    kind = getattr(diffusers, job.scheduler_class)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **job.scheduler_options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Any, job: Job, item: Item) -> Pixels:
    """One picture by such a pipeline."""
    import numpy as np
    import torch
    from PIL import Image

    images = pipe(
        prompt=item.prompt,
        image=Image.fromarray(item.image),
        mask_image=Image.fromarray(item.mask),
        height=job.height,
        width=job.width,
        strength=1.0,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        generator=torch.Generator("cpu").manual_seed(item.seed),
        output_type="pil",
    ).images
    return np.asarray(images[0])
