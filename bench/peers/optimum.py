"""optimum's ORTStableDiffusionInpaintPipeline on ONNX Runtime's CPU provider, float32."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bench.peers.diffusers import paint, scheduled
from bench.peers.job import Item, Job, Pixels, Runner


class Peer(Runner):
    """See the module."""

    packages: ClassVar = ("optimum", "optimum-onnx", "onnxruntime", "diffusers", "torch", "numpy")

    def __init__(self, job: Job) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTStableDiffusionInpaintPipeline

        torch.set_num_threads(job.threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        pipe = ORTStableDiffusionInpaintPipeline.from_pretrained(
            job.model, export=False, provider="CPUExecutionProvider", session_options=options
        )
        self._pipe = scheduled(pipe, job)
        self._job = job

    def paint(self, item: Item) -> Pixels:
        """See ``Runner.paint``."""
        return paint(self._pipe, self._job, item)

    @classmethod
    def prepare(cls, job: Job, output: Path) -> None:
        """Export to ONNX as ``optimum-cli export onnx`` does."""
        from optimum.exporters.onnx import main_export

        main_export(
            job.checkpoint, output, task="inpainting", library_name="diffusers", do_validation=False
        )
