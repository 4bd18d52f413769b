"""Edgefill itself, by the same rules as its peers.

Options: ``reference`` (True: what diffusers' pipeline does, on the whole picture; False: the
default, which works on the region of the mask and pastes back exactly); ``working_size``: see
``InpaintRequest``, none where left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bench.peers.job import Item, Job, Pixels, Runner


class Peer(Runner):
    """See the module."""

    packages: ClassVar = ("edgefill", "onnxruntime", "numpy", "opencv-python")

    def __init__(self, job: Job) -> None:
        from engine import Engine

        self._job = job
        self._engine = Engine.open(job.model, device="cpu", threads=job.threads)

    def paint(self, item: Item) -> Pixels:
        """See ``Runner.paint``."""
        from engine import InpaintRequest

        job = self._job
        request = InpaintRequest(
            image=item.image,
            mask=item.mask,
            prompt=item.prompt,
            width=job.width,
            height=job.height,
            seed=item.seed,
            strength=1.0,
            num_inference_steps=job.steps,
            guidance_scale=job.guidance,
            scheduler=job.scheduler,
            reference=job.options["reference"],
            working_size=job.options.get("working_size"),
        )
        picture: Pixels = self._engine.inpaint(request).images[0]
        return picture

    @classmethod
    def prepare(cls, job: Job, output: Path) -> None:
        """Export the checkpoint, which needs the export extra."""
        from export import export_checkpoint

        export_checkpoint(job.checkpoint, output)
