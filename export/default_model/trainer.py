"""The trainer: networks, optimiser, moving averages and counters as one resumable thing.

For: steps that can be stopped after any one of them and continued bit by bit on the same machine.
Imports torch, diffusers and transformers; reads no clock, parses no arguments, writes no files.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPTokenizer

from export.default_model.checkpoint import generator_from_text, generator_to_text
from export.default_model.compose import Composer
from export.default_model.model import (
    ModelSettings,
    build_scheduler,
    build_text_encoder,
    build_unet,
)
from export.default_model.objective import Batch, draw_timesteps, training_loss
from export.default_model.pace import Pace, ema_decay
from export.default_model.pool import (
    Captioner,
    ChunkSource,
    LatentPool,
    compose_chunk,
    encode_pictures,
)

VALIDATION_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How to train.

    Attributes:
        model: Sizes of the networks.
        batch: Samples per step.
        rate: Peak learning rate.
        warmup: Samples until the peak rate is reached.
        ema_half_life: Samples after which a weight counts half in the moving average.
        weight_decay: AdamW's weight decay.
        clip: Largest norm of the gradient.
        pool: Encoded samples held at a time.
        chunk: Samples composed and encoded together.
        visits: How often a sample is trained on before it is replaced, on average.
        seed: Seed of everything random.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    batch: int = 32
    rate: float = 4e-4
    warmup: int = 10_000
    ema_half_life: int = 30_000
    weight_decay: float = 0.01
    clip: float = 1.0
    pool: int = 4096
    chunk: int = 32
    visits: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.pool:
            raise ValueError(f"batch: {self.batch}; 1 to the pool's size ({self.pool}) is allowed")
        if self.visits < 1:
            raise ValueError(f"visits: {self.visits}; 1 or more is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step measured; tensors stay on the device until they are asked for.

    Attributes:
        loss: Scalar loss.
        terminal: Scalar mean error at the noisiest timestep.
        gradient: Scalar norm of the gradient before clipping.
    """

    loss: Tensor
    terminal: Tensor
    gradient: Tensor


class Trainer:
    """UNet and text encoder with all that belongs to their training."""

    def __init__(
        self,
        settings: TrainSettings,
        *,
        composer: Composer,
        vae: AutoencoderTiny,
        tokenizer: CLIPTokenizer,
        device: torch.device,
        workers: int = 0,
        compile_unet: bool = False,
    ) -> None:
        """Builds everything with fresh weights.

        Args:
            settings: How to train.
            composer: Where samples come from; of the model's native size.
            vae: Frozen autoencoder.
            tokenizer: Tokenizer of the captions.
            device: Where to train; bfloat16 autocast is used on CUDA.
            workers: Processes that compose ahead; 0 composes in this one.
            compile_unet: Whether to compile the UNet.

        Raises:
            ValueError: If the composer's size is not the model's.
        """
        if composer.settings.size != settings.model.size:
            raise ValueError(
                f"size: composites of {composer.settings.size} pixels for a model of"
                f" {settings.model.size}; both must agree"
            )
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device
        self.vae = vae.to(device)
        self.tokenizer = tokenizer
        self.unet = build_unet(settings.model).to(device)
        self.text = build_text_encoder(settings.model, tokenizer).to(device)
        self.ema_unet = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.ema_text = copy.deepcopy(self.text).eval().requires_grad_(False)
        self.forward_unet = torch.compile(self.unet) if compile_unet else self.unet
        self.a_bar = build_scheduler().alphas_cumprod.float().to(device)
        self.optimizer = torch.optim.AdamW(
            self.parameters(),
            settings.rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.captioner = Captioner(tokenizer, settings.model.tokens)
        self.source = ChunkSource(composer, seed=settings.seed, workers=workers)
        self.pool = LatentPool(
            self.source,
            self.vae,
            capacity=settings.pool,
            chunk=settings.chunk,
            device=device,
        )
        self.rng = np.random.default_rng(settings.seed)
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.pace = Pace(peak=settings.rate, warmup=settings.warmup)
        self.samples = 0
        self.steps = 0

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, UNet first."""
        return [*self.unet.parameters(), *self.text.parameters()]

    def restart_ema(self) -> None:
        """Sets the moving averages to the present weights, after weights were loaded."""
        self.ema_unet.load_state_dict(self.unet.state_dict())
        self.ema_text.load_state_dict(self.text.state_dict())

    def step(self) -> StepReport:
        """Trains on one batch; the pool must have been filled."""
        cfg = self.settings
        while (self.pool.made - self.pool.capacity) * cfg.visits < self.samples:
            self.pool.refresh()
        batch = self.pool.draw(self.rng, cfg.batch, self.captioner)
        last = len(self.a_bar) - 1
        timesteps = draw_timesteps(cfg.batch, last=last, generator=self.generator)
        noise = torch.randn(batch.latents.shape, generator=self.generator, device=self.device)
        with self._autocast():
            loss, error = training_loss(
                self.forward_unet,
                self.text,
                batch,
                a_bar=self.a_bar,
                timesteps=timesteps,
                noise=noise,
            )
        rate = self.pace.rate(self.samples)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        parameters = self.parameters()
        gradient = nn.utils.clip_grad_norm_(parameters, cfg.clip)
        self.optimizer.step()
        self.samples += cfg.batch
        self.steps += 1
        decay = ema_decay(self.samples, half_life=cfg.ema_half_life, batch=cfg.batch)
        averages = [*self.ema_unet.parameters(), *self.ema_text.parameters()]
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - decay)
        terminal = error.detach()[timesteps == last].mean()
        return StepReport(loss=loss.detach(), terminal=terminal, gradient=gradient.detach())

    def begin_annealing(self, length: int) -> None:
        """Lets the learning rate decay to zero within `length` samples from now.

        Raises:
            ValueError: If the decay has begun already.
        """
        if self.pace.anneal_from is not None:
            raise ValueError(
                f"annealing: begun at {self.pace.anneal_from} samples already;"
                " branch from a checkpoint of the constant rate to anneal anew"
            )
        self.pace = replace(self.pace, anneal_from=self.samples, anneal_for=length)

    def validation_set(self, composer: Composer, count: int) -> list[Batch]:
        """Fixed samples for `validate`, from a composer of held-out photographs."""
        seed = self.settings.seed + 1
        rng = np.random.default_rng(seed)
        batches = []
        for number in range(max(1, count // VALIDATION_CHUNK)):
            size = min(count, VALIDATION_CHUNK)
            pictures = compose_chunk(composer, (seed, number), size)
            whole, masked, masks = encode_pictures(self.vae, pictures, self.device)
            tokens = self.captioner.draw(rng, pictures.labels).to(self.device)
            batches.append(Batch(latents=whole, masked=masked, mask=masks, tokens=tokens))
        return batches

    @torch.no_grad()
    def validate(self, batches: list[Batch]) -> dict[str, float]:
        """Loss of the averaged weights on fixed samples, noise and timesteps."""
        generator = torch.Generator(self.device).manual_seed(self.settings.seed + 1)
        last = len(self.a_bar) - 1
        losses, terminals = [], []
        for batch in batches:
            timesteps = draw_timesteps(len(batch.tokens), last=last, generator=generator)
            noise = torch.randn(batch.latents.shape, generator=generator, device=self.device)
            with self._autocast():
                loss, error = training_loss(
                    self.ema_unet,
                    self.ema_text,
                    batch,
                    a_bar=self.a_bar,
                    timesteps=timesteps,
                    noise=noise,
                )
            losses.append(float(loss))
            terminals.append(float(error[timesteps == last].mean()))
        return {
            "validation": float(np.mean(losses)),
            "validation_terminal": float(np.mean(terminals)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, see `checkpoint`."""
        return {
            "settings": asdict(self.settings),
            "samples": self.samples,
            "steps": self.steps,
            "pace": asdict(self.pace),
            "unet": self.unet.state_dict(),
            "text": self.text.state_dict(),
            "ema_unet": self.ema_unet.state_dict(),
            "ema_text": self.ema_text.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pool": self.pool.state_dict(),
            "rng": generator_to_text(self.rng),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a saved state. Rates and sizes of batches may differ, networks may not.

        Raises:
            ValueError: If the networks' sizes differ.
        """
        theirs, ours = state["settings"]["model"], asdict(self.settings.model)
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"{name}: {theirs.get(name)} in the checkpoint, {value} in the settings;"
                    " a run keeps its networks"
                )
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text"])
        self.ema_unet.load_state_dict(state["ema_unet"])
        self.ema_text.load_state_dict(state["ema_text"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pool.load_state_dict(state["pool"])
        self.rng = generator_from_text(state["rng"])
        self.generator.set_state(state["generator"])
        self.samples, self.steps = state["samples"], state["steps"]
        kept = {k: state["pace"][k] for k in ("anneal_from", "anneal_for")}
        self.pace = replace(self.pace, **kept)

    def _autocast(self) -> torch.autocast:
        enabled = self.device.type == "cuda"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)
