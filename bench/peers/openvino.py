"""OpenVINO GenAI's InpaintingPipeline on the CPU.

Options: ``precision`` (``"f32"``, or None for what the plugin chooses: bfloat16 where the processor
has instructions for it).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.peers.job import Item, Job, Pixels, Runner

TYPES: Final = {
    "lcm": "LCM",
    "ddim": "DDIM",
    "euler": "EULER_DISCRETE",
    "euler_a": "EULER_ANCESTRAL_DISCRETE",
    "pndm": "PNDM",
}
"""``openvino_genai.Scheduler.Type`` for each of Edgefill's names that it has."""


class Peer(Runner):
    """See the module."""

    packages: ClassVar = ("openvino-genai", "openvino", "optimum-intel", "numpy")

    def __init__(self, job: Job) -> None:
        import openvino_genai

        if job.scheduler not in TYPES:
            allowed = ", ".join(TYPES)
            raise ValueError(f"has no scheduler {job.scheduler}; it has {allowed}")
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads}
        if job.options["precision"] is not None:
            settings["INFERENCE_PRECISION_HINT"] = job.options["precision"]
        self._pipe = openvino_genai.InpaintingPipeline(job.model, "CPU", **settings)
        kind = getattr(openvino_genai.Scheduler.Type, TYPES[job.scheduler])
        config = Path(job.model) / "scheduler" / "scheduler_config.json"
        self._pipe.set_scheduler(openvino_genai.Scheduler.from_config(config, kind))
        self._job = job

    def paint(self, item: Item) -> Pixels:
        """See ``Runner.paint``."""
        return self._paint(item, rng_seed=item.seed)

    def paint_with_shared_noise(self, item: Item) -> Pixels:
        """See ``Runner.paint_with_shared_noise``; it loads torch."""
        import openvino_genai

        return self._paint(item, generator=openvino_genai.TorchGenerator(item.seed))

    def _paint(self, item: Item, **noise: Any) -> Pixels:
        import numpy as np
        import openvino

        job = self._job
        mask = np.repeat(item.mask[..., None], 3, axis=2)
        made = self._pipe.generate(
            item.prompt,
            openvino.Tensor(item.image[None].copy()),
            openvino.Tensor(mask[None].copy()),
            height=job.height,
            width=job.width,
            strength=1.0,
            num_inference_steps=job.steps,
            guidance_scale=job.guidance,
            **noise,
        )
        return np.array(made.data[0])

    @classmethod
    def prepare(cls, job: Job, output: Path) -> None:
        """Export as ``optimum-cli export openvino --weight-format fp32`` does."""
        from optimum.exporters.openvino import main_export
        from optimum.intel import OVConfig

        main_export(
            job.checkpoint,
            output,
            task="inpainting",
            library_name="diffusers",
            ov_config=OVConfig(dtype="fp32"),
            convert_tokenizer=True,
        )
        # What the exporter does not copy, the pipeline wants.
        config = output / "scheduler" / "scheduler_config.json"
        if not config.is_file():
            source = Path(job.checkpoint) / "scheduler" / "scheduler_config.json"
            config.parent.mkdir(exist_ok=True)
            config.write_text(json.dumps(json.loads(source.read_text())), encoding="utf-8")
