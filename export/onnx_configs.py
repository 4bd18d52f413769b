"""How each network becomes a graph: optimum's exporter with configurations of our own.

The tensor names, their order and their symbolic shapes are the bundle's (``engine.bundle``), given
once as ``TensorSpec``: the graph's dynamic axes and the bundle's entries both come from them.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from optimum.exporters.onnx import OnnxConfig
from optimum.exporters.onnx.convert import export_pytorch
from optimum.exporters.onnx.model_patcher import ModelPatcher
from optimum.utils import NormalizedConfig
from torch import Tensor, nn

from engine.bundle import SIZE_IDS, TensorSpec
from export.quiet import quiet
from export.wrappers import fused_attention, per_row_timestep

OPSET: Final = 17
"""LayerNormalization is one operator from 17 on. Below 21 the tracer writes GroupNorm in the
pattern that ONNX Runtime's and TensorRT's fusions know; 17 is what both are tested with most."""

# An odd plane makes diffusers pass the size of each skip to the upsampling before it, read from
# the tensors themselves, and so does the graph then: it holds for planes of any size. Traced at
# a multiple of the UNet's own factor, it would double sizes and fail on all others.
_TRACED_PLANE: Final = (11, 13)
_TRACED_BATCH: Final = 2
_LATENT_PLANE: Final = ("height/8", "width/8")


class _Patcher(ModelPatcher):
    """Puts the traceable renderings in place while the graph is traced."""

    def __enter__(self) -> None:
        super().__enter__()
        self._stack = ExitStack()
        self._stack.enter_context(fused_attention(self._model))
        if hasattr(self._model, "unet"):
            self._stack.enter_context(per_row_timestep(self._model.unet))

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
        super().__exit__(*error)


class ComponentOnnxConfig(OnnxConfig):
    """A network of the bundle, told by the tensors it takes and gives."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DEFAULT_ONNX_OPSET = OPSET
    _MODEL_PATCHER = _Patcher

    def __init__(
        self, config: Any, *, takes: tuple[TensorSpec, ...], gives: tuple[TensorSpec, ...]
    ) -> None:
        super().__init__(config)
        self.takes, self.gives = takes, gives

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {spec.name: _dynamic_axes(spec) for spec in self.takes}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {spec.name: _dynamic_axes(spec) for spec in self.gives}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Tensor]:
        """One tensor per input at the traced sizes; optimum asks for them by this name."""
        height, width = _TRACED_PLANE
        sizes = {"batch": _TRACED_BATCH, "tokens": 7, "height/8": height, "width/8": width}
        sizes |= {"height": 8 * height, "width": 8 * width}
        return {spec.name: _traced_input(spec, sizes) for spec in self.takes}


class TextEncoderOnnxConfig(ComponentOnnxConfig):
    """``input_ids`` -> ``last_hidden_state``, or ``penultimate_hidden_state``, and ``text_embeds``
    where ``pooled`` says how wide those are."""

    def __init__(
        self, config: Any, *, tokens: int, penultimate: bool = False, pooled: int = 0
    ) -> None:
        name = "penultimate_hidden_state" if penultimate else "last_hidden_state"
        hidden = _float(name, "batch", tokens, config.hidden_size)
        super().__init__(
            config,
            takes=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", tokens)),),
            gives=(hidden, _float("text_embeds", "batch", pooled)) if pooled else (hidden,),
        )


class UnetOnnxConfig(ComponentOnnxConfig):
    """``sample``, ``timestep`` per row, ``encoder_hidden_states`` -> ``noise_pred``; for SDXL also
    ``text_embeds`` and ``time_ids``, per row too.

    The timestep is a float, since Euler's timesteps fall between those of the training.
    """

    def __init__(self, config: Any) -> None:
        added: tuple[TensorSpec, ...] = ()
        if config.addition_embed_type == "text_time":
            sizes = SIZE_IDS * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - sizes
            added = (_float("text_embeds", "batch", pooled), _float("time_ids", "batch", SIZE_IDS))
        super().__init__(
            config,
            takes=(
                _float("sample", "batch", config.in_channels, *_LATENT_PLANE),
                _float("timestep", "batch"),
                _float("encoder_hidden_states", "batch", "tokens", config.cross_attention_dim),
                *added,
            ),
            gives=(_float("noise_pred", "batch", config.out_channels, *_LATENT_PLANE),),
        )


class VaeEncoderOnnxConfig(ComponentOnnxConfig):
    """``image`` -> ``moments`` of an AutoencoderKL, ``latents`` of an AutoencoderTiny."""

    def __init__(self, config: Any, *, gaussian: bool) -> None:
        channels = config.latent_channels
        moments = _float("moments", "batch", 2 * channels, *_LATENT_PLANE)
        latents = _float("latents", "batch", channels, *_LATENT_PLANE)
        super().__init__(
            config,
            takes=(_float("image", "batch", 3, "height", "width"),),
            gives=(moments if gaussian else latents,),
        )


class VaeDecoderOnnxConfig(ComponentOnnxConfig):
    """``latents``, unscaled -> ``image``."""

    def __init__(self, config: Any) -> None:
        super().__init__(
            config,
            takes=(_float("latents", "batch", config.latent_channels, *_LATENT_PLANE),),
            gives=(_float("image", "batch", 3, "height", "width"),),
        )


class SafetyCheckerOnnxConfig(ComponentOnnxConfig):
    """``image`` of one size, normalised -> ``cosines``, one for each threshold."""

    def __init__(self, config: Any, *, side: int, thresholds: int) -> None:
        super().__init__(
            config,
            takes=(_float("image", "batch", 3, side, side),),
            gives=(_float("cosines", "batch", thresholds),),
        )


def convert(module: nn.Module, config: ComponentOnnxConfig, path: Path) -> None:
    """Trace a module into an ONNX file; weights above 2 GB come to lie beside it."""
    with quiet("torch.onnx", "optimum.exporters"), warnings.catch_warnings(), torch.no_grad():
        # Values that the tracer takes for constants: the parity gate tells whether they are.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # dynamo=False is deprecated; the graphs of its successor do not match the fusions yet.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|optimum)\.")
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        export_pytorch(module, config, OPSET, path)


def _float(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def _dynamic_axes(spec: TensorSpec) -> dict[int, str]:
    return {i: axis for i, axis in enumerate(spec.shape) if isinstance(axis, str)}


def _traced_input(spec: TensorSpec, sizes: dict[str, int]) -> Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    if spec.dtype == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    # Different rows: equal ones let the tracer take an expanded constant for an input.
    return torch.linspace(0.1, 1.0, shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
