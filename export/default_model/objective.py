"""Noise levels, loss weights, and the loss.

For: the mathematics of one training step as pure functions on tensors. Imports torch; knows nothing
of data, files or time. Letters follow the papers: x_0 clean latents, x_t noisy ones, a_bar the
cumulative product of alphas (DDPM, Ho et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

FIRST_TIMESTEP = 16
"""No sampler of 50 or fewer trailing steps looks below this timestep."""

OUTSIDE_WEIGHT = 0.12
"""Loss weight outside the hole, where the answer is given; 1 inside."""

WEIGHT_MAX = 4.0
"""Cap of the loss weight SNR + 1."""

TERMINAL_SHARE = 1 / 16
"""Share of a batch at the last timestep, where every sampler starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one step trains on, h = H // 8, w = W // 8.

    Attributes:
        latents: (B, 4, h, w) scaled latents of the whole picture.
        masked: (B, 4, h, w) scaled latents of the picture with a grey hole.
        mask: (B, 1, h, w), 1 in the hole.
        tokens: (B, T) int64 token numbers of the captions.
    """

    latents: Tensor
    masked: Tensor
    mask: Tensor
    tokens: Tensor


def draw_timesteps(count: int, *, last: int, generator: torch.Generator) -> Tensor:
    """Draws stratified timesteps, a fixed share of them the last one.

    Args:
        count: Batch size B.
        last: The last timestep, for example 999.
        generator: Source of randomness; the result lies on its device.

    Returns:
        (B,) int64.
    """
    terminal = max(1, round(count * TERMINAL_SHARE))
    device = generator.device
    jitter = torch.rand(count, generator=generator, device=device)
    spread = (torch.arange(count, device=device) + jitter) / count
    timesteps = (FIRST_TIMESTEP + spread * (last + 1 - FIRST_TIMESTEP)).long().clamp(max=last)
    # Batches come in random order already, so the strata need no shuffling, except that the
    # terminal ones are taken evenly and not from the noisiest strata alone.
    timesteps[torch.arange(terminal, device=device) * count // terminal] = last
    return timesteps


def add_noise(x_0: Tensor, noise: Tensor, a_bar: Tensor) -> Tensor:
    """The forward process: x_t = sqrt(a_bar) x_0 + sqrt(1 - a_bar) noise.

    Args:
        x_0: (B, 4, h, w).
        noise: (B, 4, h, w).
        a_bar: (B,).
    """
    a_bar = a_bar.view(-1, 1, 1, 1)
    return a_bar.sqrt() * x_0 + (1 - a_bar).sqrt() * noise


def hole_loss(predicted: Tensor, x_0: Tensor, mask: Tensor) -> Tensor:
    """Squared error of the clean latents, counted mostly in the hole and the ring round it.

    Args:
        predicted: (B, 4, h, w).
        x_0: (B, 4, h, w).
        mask: (B, 1, h, w), 1 in the hole.

    Returns:
        (B,) mean squared error per sample.
    """
    ring = F.max_pool2d(mask, 3, 1, 1)
    weight = OUTSIDE_WEIGHT + (1 - OUTSIDE_WEIGHT) * ring
    error = (predicted.float() - x_0).square() * weight
    return error.sum((1, 2, 3)) / (weight.sum((1, 2, 3)) * x_0.shape[1])


def predict(
    unet: UNet2DConditionModel, text: CLIPTextModel, batch: Batch, x_t: Tensor, timesteps: Tensor
) -> Tensor:
    """Runs both networks: the clean latents they believe in, (B, 4, h, w)."""
    states = text(batch.tokens)[0]
    inputs = torch.cat([x_t, batch.mask, batch.masked], dim=1)
    output: Tensor = unet(inputs, timesteps, states, return_dict=False)[0]
    return output


def training_loss(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    batch: Batch,
    *,
    a_bar: Tensor,
    timesteps: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """The loss of one batch.

    The weight min(SNR + 1, cap) on clean-sample error equals the v-prediction loss up to the cap
    (Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022).

    Args:
        unet: UNet, predicting clean latents.
        text: Text encoder.
        batch: The samples.
        a_bar: (T,) cumulative products of the noise schedule.
        timesteps: (B,) int64.
        noise: (B, 4, h, w) standard normal.

    Returns:
        The scalar loss and the unweighted (B,) errors.
    """
    level = a_bar[timesteps]
    x_t = add_noise(batch.latents, noise, level)
    error = hole_loss(predict(unet, text, batch, x_t, timesteps), batch.latents, batch.mask)
    weight = (1 / (1 - level).clamp(min=1e-6)).clamp(max=WEIGHT_MAX)
    return (error * weight).mean(), error
