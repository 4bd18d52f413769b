"""The networks as the engine calls them: torch modules with plain tensors in and one tensor out.

Each wraps an unchanged module of diffusers or transformers. What has to be said differently for the
tracer (attention, the time embedding) is put in place by a patcher of ``export.onnx_configs`` while
the graph is traced, and taken away again, so that the parity gate compares with the originals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional


class TextEncoder(nn.Module):
    """``input_ids`` (B, L) int64 -> ``last_hidden_state`` (B, L, D), L fixed.

    For SDXL it gives what the last layer is given instead, and of a model with a projection the
    projected end token (B, P) too.

    The causal mask and the positions are constants, so that no mask arithmetic enters the graph.
    """

    def __init__(self, model: Any, tokens: int, *, penultimate: bool = False) -> None:
        super().__init__()
        self.config = model.config
        self.text_model = model.text_model
        self.penultimate = penultimate
        self.projection = getattr(model, "text_projection", None)
        blocked = torch.full((tokens, tokens), torch.finfo(torch.float32).min)
        self.register_buffer("mask", blocked.triu(1)[None, None], persistent=False)
        self.register_buffer("positions", torch.arange(tokens)[None], persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        text = self.text_model
        hidden = text.embeddings(input_ids=input_ids, position_ids=self.positions)
        *layers, last = text.encoder.layers
        for layer in layers:
            hidden = layer(hidden, attention_mask=None, causal_attention_mask=self.mask)[0]
        project: Any = self.projection
        if self.penultimate and project is None:
            return hidden
        final = text.final_layer_norm(
            last(hidden, attention_mask=None, causal_attention_mask=self.mask)[0]
        )
        if not self.penultimate:
            return final
        ends = self._ends(input_ids)[:, None, None].expand(-1, 1, final.shape[-1])
        return hidden, project(final.gather(1, ends)[:, 0])

    def _ends(self, input_ids: Tensor) -> Tensor:
        """Where the end token stands, (B,): the first of them, or the token of the highest number
        where the configuration says 2, as it did before transformers 4.30."""
        eos = self.text_model.eos_token_id
        ids = input_ids.int()
        return (ids if eos == 2 else (ids == eos).int()).argmax(dim=-1)


class Unet(nn.Module):
    """``sample`` (B, C, h, w), ``timestep`` (B,), text (B, T, D) -> ``noise_pred`` (B, 4, h, w);
    for SDXL also the pooled text (B, P) and the sizes (B, 6)."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.config = unet.config
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        added = None if time_ids is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]


class VaeEncoder(nn.Module):
    """``image`` (B, 3, H, W) in [-1, 1] -> moments (B, 8, h, w), or latents of an AutoencoderTiny.

    Neither is scaled, clamped or sampled: that is the engine's.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.config = vae.config
        self.encoder = vae.encoder
        self.quant_conv = getattr(vae, "quant_conv", None)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.encoder(image)
        return hidden if self.quant_conv is None else self.quant_conv(hidden)


class VaeDecoder(nn.Module):
    """``latents`` (B, 4, h, w), unscaled -> ``image`` (B, 3, H, W), about [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.config = vae.config
        self.decoder = vae.decoder
        self.post_quant_conv = getattr(vae, "post_quant_conv", None)

    def forward(self, latents: Tensor) -> Tensor:
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


class SafetyChecker(nn.Module):
    """``image`` (B, 3, side, side), normalised -> ``cosines`` (B, S + C) with the S pictures of
    special care and the C concepts, as diffusers' StableDiffusionSafetyChecker takes them.

    The thresholds are the engine's.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection
        known = torch.cat([model.special_care_embeds, model.concept_embeds])
        self.register_buffer("known", functional.normalize(known).t(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        embeds = self.visual_projection(self.vision_model(image)[1])
        return functional.normalize(embeds) @ self.known


class _Attend(torch.autograd.Function):
    """softmax(Q K' / sqrt(d)) V of (B, S, heads d) and twice (B, L, heads d), one operator.

    ONNX Runtime computes it in blocks that fit the caches, and never holds the scores of all
    tokens with all.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        split = (
            tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value)
        )
        return functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, heads: int) -> Any:
        fused = g.op("com.microsoft::MultiHeadAttention", query, key, value, num_heads_i=heads)
        fused.setType(query.type())
        return fused


class FusedAttention:
    """Softmax attention, the same sums as ``AttnProcessor2_0``, traced into one operator."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            raise NotImplementedError("attention masks are not exported")
        residual, plane = hidden_states, hidden_states.ndim == 4
        if plane:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross and encoder_hidden_states is not None:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        hidden_states = attn.to_out[0](_Attend.apply(query, key, value, attn.heads))
        if plane:
            hidden_states = hidden_states.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        if attn.rescale_output_factor != 1:
            hidden_states = hidden_states / attn.rescale_output_factor
        return hidden_states


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """Let the usual attention layers of a diffusers model run ``FusedAttention`` meanwhile."""
    changed = [
        (layer, layer.processor)
        for layer in model.modules()
        if isinstance(layer, Attention)
        and type(layer.processor) in (AttnProcessor, AttnProcessor2_0)
        and layer.spatial_norm is None
        and layer.norm_q is None
        and layer.norm_k is None
    ]
    try:
        for layer, _ in changed:
            layer.processor = FusedAttention()
        yield
    finally:
        for layer, processor in changed:
            layer.processor = processor


@contextmanager
def per_row_timestep(model: nn.Module) -> Iterator[None]:
    """Let a ``UNet2DConditionModel`` take ``timestep`` as it is, one per row, meanwhile.

    The original turns numbers into tensors and expands one timestep to the whole batch.
    """
    unet: Any = model

    def get_time_embed(sample: Tensor, timestep: Tensor) -> Tensor:
        return unet.time_proj(timestep).to(sample.dtype)

    unet.get_time_embed = get_time_embed
    try:
        yield
    finally:
        del unet.get_time_embed
