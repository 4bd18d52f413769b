"""A checkpoint in, a model bundle out; holds the training recipe of the default model.

    from export import export_checkpoint

    bundle = export_checkpoint("path/to/checkpoint", "path/to/bundle")

The only wing that may import torch, diffusers, transformers, optimum and onnx, and it does so when
it is called, not when it is imported. From Edgefill itself it imports ``engine.bundle``,
``engine.errors`` and ``engine.schedulers`` only, and is never imported by engine or service at
module level. It reads safetensors, never pickle, and runs no code that a checkpoint brings along.
"""

from __future__ import annotations

from export.errors import ExportError, ParityError
from export.exporter import Progress, export_checkpoint

__all__ = ["ExportError", "ParityError", "Progress", "export_checkpoint"]
