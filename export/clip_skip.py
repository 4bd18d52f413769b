"""A text encoder that also says what it would say without its last layers ("clip skip").

Beside ``last_hidden_state`` it gives ``skipped_hidden_states`` (B, N, L, D): entry s - 1 is what is
said without the last s layers, through the final layer norm, as diffusers' pipelines take it with
``clip_skip=s``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.bundle import SKIPPED_STATES, TensorSpec
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.networks import Network, text_encoder
from export.onnx_configs import ComponentOnnxConfig


class SkippingTextEncoder(nn.Module):
    """``input_ids`` (B, L) int64 -> ``last_hidden_state`` (B, L, D), ``skipped_hidden_states``.

    Made of an ``export.wrappers.TextEncoder``, whose constants it takes.
    """

    def __init__(self, plain: Any, skips: int) -> None:
        super().__init__()
        self.config = plain.config
        self.plain = plain
        self.skips = skips

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        text, mask = self.plain.text_model, self.plain.mask
        states = [text.embeddings(input_ids=input_ids, position_ids=self.plain.positions)]
        for layer in text.encoder.layers:
            states += layer(states[-1], attention_mask=None, causal_attention_mask=mask)[:1]
        last, *skipped = (text.final_layer_norm(state) for state in states[: -self.skips - 2 : -1])
        return last, torch.stack(skipped, dim=1)


def network(checkpoint: Checkpoint, *, tokens: int, skips: int) -> Network:
    """The text encoder of a checkpoint, able to leave out 1 to ``skips`` of its last layers.

    Raises:
        ExportError: When it has not so many layers.
    """
    if len(checkpoint.text_encoders) > 1:
        raise ExportError(f"clip_skip is {skips}; a checkpoint with two text encoders allows none")
    plain = text_encoder(checkpoint, tokens=tokens)
    wrapped: Any = plain.module
    text, layers = wrapped.text_model, wrapped.config.num_hidden_layers
    if not 1 <= skips <= layers:
        raise ExportError(f"clip_skip is {skips}; this text encoder allows 1 to {layers}")

    def reference(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        said = text(input_ids=input_ids, output_hidden_states=True)
        skipped = [said.hidden_states[-(skip + 1)] for skip in range(1, skips + 1)]
        return said.last_hidden_state, text.final_layer_norm(torch.stack(skipped, dim=1))

    takes, gives = plain.config.takes, plain.config.gives
    shape = (gives[0].shape[0], skips, *gives[0].shape[1:])
    states = TensorSpec(name=SKIPPED_STATES, dtype="float32", shape=shape)
    return replace(
        plain,
        module=SkippingTextEncoder(wrapped, skips),
        config=ComponentOnnxConfig(wrapped.config, takes=takes, gives=(*gives, states)),
        reference=reference,
    )
