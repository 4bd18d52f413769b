"""Command line of the autoencoder trainer: `python -m export.default_model.vae`.

For: the f = 8, 4-channel AutoencoderTiny that turns pictures into latents, trained on the same
composites as the UNet. Resumable like the UNet's trainer; writes `state.pt`, `log.jsonl` and `vae/`
(the averaged weights) into the run folder. It does not touch UNet or text encoder, which must be
trained after it, never before.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from export.default_model.checkpoint import (
    generator_from_text,
    generator_to_text,
    load_state,
    save_state,
)
from export.default_model.compose import Composer, ComposeSettings
from export.default_model.data import load_photos, load_sprites
from export.default_model.model import build_vae
from export.default_model.pool import to_tensor

WARM_SHARE = 0.35
"""Share of the run in which latents are pulled to mean colours."""

EMA_DECAY = 0.999


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 of horizontal and vertical differences on three scales; keeps edges sharp."""
    total = torch.zeros((), device=a.device)
    difference = a - b
    for _ in range(3):
        total = total + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total


def vae_loss(
    net: nn.Module, images: Tensor, *, noise: Tensor, progress: float
) -> tuple[Tensor, Tensor]:
    """The loss of one batch.

    Args:
        net: AutoencoderTiny.
        images: (B, 3, H, W) between -1 and 1.
        noise: (B, 4, H // 8, W // 8); a sampler's latents are never exact, so the decoder must bear
            a little of it.
        progress: Share of the run done, 0 to 1.

    Returns:
        The loss and its reconstruction part, both scalar.
    """
    latents = net.encoder(images)
    restored = net.decoder(latents + noise)
    coarse = F.avg_pool2d(images, 8)
    difference = restored - images
    reconstruction = (
        difference.abs().mean()
        + 2 * difference.square().mean()
        + (F.avg_pool2d(restored, 8) - coarse).abs().mean()
        + 0.4 * edge_loss(restored, images)
    )
    # Without this pull, L1 training sticks at grey pictures for minutes: three latents begin as the
    # mean colour of their cell.
    pull = (latents[:, :3] - coarse / 0.55).square().mean() * max(0.0, 1 - progress / WARM_SHARE)
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    moments = mean.square().mean() + (spread - 1).square().mean()
    return reconstruction + 0.02 * moments + pull, reconstruction


def draw_crops(
    composer: Composer, rng: np.random.Generator, *, count: int, side: int
) -> NDArray[np.uint8]:
    """Random turned crops of composites, some with a grey hole as the pipeline makes them.

    Returns:
        (N, side, side, 3) uint8.
    """
    crops = []
    for _ in range(count):
        composite = composer.compose(rng)
        image = composite.image
        if rng.random() < 0.3:
            image = np.where(composite.mask[..., None] > 0, np.uint8(128), image)
        y, x = rng.integers(0, image.shape[0] - side + 1, 2)
        crop = np.rot90(image[y : y + side, x : x + side], int(rng.integers(4)))
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return np.stack(crops)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean peak signal-to-noise ratio of pictures between -1 and 1, dB."""
    return float(-10 * ((a - b) / 2).square().mean((1, 2, 3)).log10().mean())


class VaeTrainer:
    """Autoencoder, its moving average, optimiser and random states."""

    def __init__(
        self,
        composer: Composer,
        *,
        width: int,
        steps: int,
        rate: float,
        batch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Builds the net with fresh weights; the rate follows a half cosine over `steps`."""
        torch.manual_seed(seed)
        self.composer = composer
        self.total = steps
        self.rate = rate
        self.batch = batch
        self.device = device
        self.net = build_vae(width).to(device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
        )
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.steps = 0

    def step(self, side: int) -> float:
        """Trains on one batch of crops; returns the reconstruction loss."""
        progress = self.steps / self.total
        rate = self.rate * min(1.0, (self.steps + 1) / 100)
        rate *= 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = float(rate)
        crops = draw_crops(self.composer, self.rng, count=self.batch, side=side)
        images = to_tensor(crops, self.device).contiguous(memory_format=torch.channels_last)
        shape = (self.batch, 4, side // 8, side // 8)
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        strength = torch.rand((self.batch, 1, 1, 1), generator=self.generator, device=self.device)
        enabled = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            loss, reconstruction = vae_loss(
                self.net, images, noise=noise * strength * 0.16, progress=progress
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        decay = min(EMA_DECAY, 1 - 1 / (1 + self.steps / 4))
        weights = [p.detach() for p in self.net.parameters()]
        torch._foreach_lerp_(list(self.ema.parameters()), weights, 1 - decay)
        return float(reconstruction.detach())

    @torch.no_grad()
    def finish(self, images: Tensor, folder: Path) -> dict[str, float]:
        """Measures the averaged net on fixed pictures and saves it.

        The scaling factor that makes latents of unit variance is stored with it.

        Args:
            images: (N, 3, H, W) between -1 and 1.
            folder: Run folder.
        """
        latents = self.ema.encode(images).latents
        restored = self.ema.decode(latents).sample.clamp(-1, 1)
        self.ema.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
        self.ema.save_pretrained(folder / "vae")
        return {"psnr": round(psnr(restored, images), 2), "std": round(float(latents.std()), 4)}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue."""
        return {
            "steps": self.steps,
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": generator_to_text(self.rng),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a saved state."""
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng = generator_from_text(state["rng"])
        self.generator.set_state(state["generator"])
        self.steps = state["steps"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trainer; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m export.default_model.vae",
        description="Train the autoencoder of the default model.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the shards")
    add("--output", type=Path, required=True, help="run folder; resumed if it has a checkpoint")
    add("--steps", type=int, default=12_000, help="length of the run (%(default)s)")
    add("--width", type=int, default=32, help="channels; 64 on a GPU (%(default)s)")
    add("--size", type=int, default=128, help="pixels of composites (%(default)s)")
    add("--side", type=int, default=64, help="pixels of the crops trained on (%(default)s)")
    add("--batch", type=int, default=8, help="crops per step (%(default)s)")
    add("--rate", type=float, default=1.5e-3, help="peak learning rate (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--save-minutes", type=float, default=5, help="between checkpoints (%(default)s)")
    add("--log-every", type=int, default=100, help="steps (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites(args.data, side=args.size)
    compose = ComposeSettings(size=args.size, insertion=0.9, bystander=0.8)
    short_side = args.size * 3 // 2
    composer = Composer(sprites, load_photos(args.data, short_side=short_side), compose)
    held_out = load_photos(args.data, short_side=short_side, held_out=True)
    device = torch.device(args.device)
    judge = Composer(sprites, held_out, compose)
    fixed = draw_crops(judge, np.random.default_rng(args.seed + 1), count=16, side=args.size)
    images = to_tensor(fixed, device)
    trainer = VaeTrainer(
        composer,
        width=args.width,
        steps=args.steps,
        rate=args.rate,
        batch=args.batch,
        seed=args.seed,
        device=device,
    )
    state = load_state(args.output)
    if state is not None:
        trainer.load_state_dict(state)
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    losses: list[float] = []
    saved = time.monotonic()
    while trainer.steps < args.steps and not stopping:
        losses.append(trainer.step(args.side))
        if trainer.steps % args.log_every == 0:
            row = {"step": trainer.steps, "loss": round(float(np.mean(losses)), 4)}
            row |= trainer.finish(images, args.output)
            losses.clear()
            text = json.dumps(row)
            print(text, flush=True)
            with (args.output / "log.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")
        if time.monotonic() - saved > args.save_minutes * 60:
            save_state(args.output, trainer.state_dict())
            saved = time.monotonic()
    save_state(args.output, trainer.state_dict())
    trainer.finish(images, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
