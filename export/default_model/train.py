"""Command line of the UNet and text encoder trainer: `python -m export.default_model.train`.

For: a run folder that can be stopped by SIGTERM or Ctrl-C and continued by the same command. Reads
the shards and a diffusers folder with at least `vae/` and `tokenizer/`; writes into the run folder
only: `state.pt` (and the one before), `log.jsonl`, and `pipeline/`, the averaged weights as a
diffusers folder. Progress goes to stdout, one JSON object a line; notes go to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch

from export.default_model.checkpoint import load_state, save_state
from export.default_model.compose import Composer, ComposeSettings
from export.default_model.data import load_photos, load_sprites
from export.default_model.model import (
    ModelSettings,
    load_tokenizer,
    load_vae,
    load_weights,
    save_pipeline,
)
from export.default_model.objective import Batch
from export.default_model.trainer import StepReport, Trainer, TrainSettings

logger = logging.getLogger(__name__)

LONGEST_STEP = 60.0
"""Seconds of one step that count as work; a longer one was a pause of the process."""

SPEED_STEPS = 50
"""Steps timed before minutes of annealing are turned into samples."""


@dataclass(kw_only=True)
class Progress:
    """What happened since the last line of the log; losses stay on the device until then."""

    active: float = 0.0
    reports: list[StepReport] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, report: StepReport, seconds: float) -> None:
        """Counts one step."""
        self.reports.append(report)
        self.seconds += seconds
        self.active += seconds

    def require_finite(self, step: int) -> None:
        """Refuses to go on with weights that are spoilt.

        Raises:
            FloatingPointError: If a loss since the last line is not finite.
        """
        for report in self.reports:
            if not torch.isfinite(report.loss):
                raise FloatingPointError(
                    f"loss: {float(report.loss)} at step {step} or shortly before; a finite one"
                    " is needed. Resume from the last checkpoint with a lower --rate"
                )

    def line(self, trainer: Trainer) -> dict[str, Any]:
        """Sums up, and forgets everything but the active seconds."""
        mean = {
            name: float(torch.stack([getattr(r, name) for r in self.reports]).mean())
            for name in ("loss", "terminal", "gradient")
        }
        speed = trainer.settings.batch * len(self.reports) / max(self.seconds, 1e-9)
        self.reports.clear()
        self.seconds = 0.0
        return {
            "step": trainer.steps,
            "samples": trainer.samples,
            "active_seconds": round(self.active),
            "samples_per_second": round(speed, 1),
            "loss": round(mean["loss"], 4),
            "terminal": round(mean["terminal"], 4),
            "gradient": round(mean["gradient"], 3),
            "rate": float(f"{trainer.pace.rate(trainer.samples):.3g}"),
        }


class Run:
    """A trainer with its folder: logs, checkpoints, stopping."""

    def __init__(self, trainer: Trainer, folder: Path, validation: list[Batch]) -> None:
        """Keeps the parts; `resume` or `start` comes next."""
        self.trainer = trainer
        self.folder = folder
        self.validation = validation
        self.progress = Progress()
        self.stopping = False

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Asks the loop to save and end after the present step; a signal handler."""
        self.stopping = True

    def resume(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint."""
        self.trainer.load_state_dict(state["trainer"])
        self.progress.active = state["active_seconds"]
        logger.info("resumed at samples: %d", self.trainer.samples)

    def start(self) -> None:
        """Fills the pool of a new run."""
        for made in self.trainer.pool.fill():
            if self.stopping:
                return
            if made % 1024 == 0:
                logger.info("pool: %d of %d", made, self.trainer.pool.capacity)

    def save(self) -> None:
        """Writes the checkpoint and the averaged weights."""
        trainer = self.trainer
        if trainer.pool.made < trainer.pool.capacity:
            return
        self.progress.require_finite(trainer.steps)
        state = {"trainer": trainer.state_dict(), "active_seconds": self.progress.active}
        save_state(self.folder, state)
        save_pipeline(
            self.folder / "pipeline",
            vae=trainer.vae,
            unet=trainer.ema_unet,
            text=trainer.ema_text,
            tokenizer=trainer.tokenizer,
        )

    def log(self, row: dict[str, Any]) -> None:
        """Adds a line to stdout and to the log."""
        text = json.dumps(row)
        print(text, flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def loop(
        self,
        *,
        samples: int | None,
        anneal_seconds: float,
        save_seconds: float,
        log_every: int,
        validate_every: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Trains until told to stop, until `samples`, or until annealed.

        Args:
            samples: Total number of samples to stop at, or None.
            anneal_seconds: Active seconds the final decay is to take; 0 for none.
            save_seconds: Time between checkpoints.
            log_every: Steps between lines of the log.
            validate_every: Steps between validations.
            clock: Seconds, for speeds and saving only.
        """
        trainer, progress = self.trainer, self.progress
        timed: list[float] = []
        saved = before = clock()
        while not self.stopping:
            if trainer.pace.finished(trainer.samples):
                break
            if samples is not None and trainer.samples >= samples:
                break
            report = trainer.step()
            now = clock()
            spent, before = min(now - before, LONGEST_STEP), now
            progress.add(report, spent)
            if anneal_seconds and trainer.pace.anneal_from is None:
                timed.append(spent)
                if len(timed) == SPEED_STEPS:
                    steps = max(1, round(anneal_seconds / float(np.mean(timed))))
                    trainer.begin_annealing(steps * trainer.settings.batch)
                    logger.info("annealing for steps: %d", steps)
            if trainer.steps % log_every == 0:
                progress.require_finite(trainer.steps)
                row = progress.line(trainer)
                if trainer.steps % validate_every == 0:
                    row |= {k: round(v, 4) for k, v in trainer.validate(self.validation).items()}
                self.log(row)
            if now - saved > save_seconds:
                self.save()
                saved = clock()
            before = max(before, saved)
        self.save()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    settings, model = TrainSettings(), ModelSettings()
    parser = argparse.ArgumentParser(
        prog="python -m export.default_model.train",
        description="Train the UNet and text encoder of the default model.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the shards")
    add("--output", type=Path, required=True, help="run folder; resumed if it has a checkpoint")
    add("--init", type=Path, required=True, help="diffusers folder with vae/ and tokenizer/")
    add("--warm-start", action="store_true", help="also take UNet and text encoder from --init")
    add("--branch", type=Path, help="run folder whose checkpoint a new run begins with")
    add("--samples", type=int, help="stop at this total; otherwise run until SIGTERM")
    add("--anneal-minutes", type=float, default=0, help="end the run by decaying the rate to 0")
    add("--size", type=int, default=model.size, help="native pixels (%(default)s)")
    add("--channels", default=",".join(map(str, model.channels)), help="UNet levels (%(default)s)")
    add("--batch", type=int, default=settings.batch, help="(%(default)s)")
    add("--rate", type=float, default=settings.rate, help="peak learning rate (%(default)s)")
    add("--warmup", type=int, default=settings.warmup, help="samples (%(default)s)")
    add("--ema-half-life", type=int, default=settings.ema_half_life, help="samples (%(default)s)")
    add("--pool", type=int, default=settings.pool, help="encoded samples held (%(default)s)")
    add("--chunk", type=int, default=settings.chunk, help="encoded at a time (%(default)s)")
    add("--visits", type=float, default=settings.visits, help="uses of a sample (%(default)s)")
    add("--seed", type=int, default=settings.seed, help="(%(default)s)")
    add("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--workers", type=int, default=0, help="processes that compose ahead (%(default)s)")
    add("--compile", action="store_true", help="compile the UNet")
    add("--save-minutes", type=float, default=5, help="between checkpoints (%(default)s)")
    add("--log-every", type=int, default=100, help="steps (%(default)s)")
    add("--validate-every", type=int, default=1000, help="steps (%(default)s)")
    add("--validation", type=int, default=256, help="held-out samples (%(default)s)")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> Run:
    """Loads data and networks, and resumes if the run folder has a checkpoint."""
    model = ModelSettings(size=args.size, channels=tuple(map(int, args.channels.split(","))))
    settings = TrainSettings(
        model=model,
        batch=args.batch,
        rate=args.rate,
        warmup=args.warmup,
        ema_half_life=args.ema_half_life,
        pool=args.pool,
        chunk=args.chunk,
        visits=args.visits,
        seed=args.seed,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites(args.data, side=args.size)
    compose = ComposeSettings(size=args.size)
    short_side = args.size * 3 // 2
    photos = load_photos(args.data, short_side=short_side)
    held_out = load_photos(args.data, short_side=short_side, held_out=True)
    trainer = Trainer(
        settings,
        composer=Composer(sprites, photos, compose),
        vae=load_vae(args.init),
        tokenizer=load_tokenizer(args.init),
        device=torch.device(args.device),
        workers=args.workers,
        compile_unet=args.compile,
    )
    validation = trainer.validation_set(Composer(sprites, held_out, compose), args.validation)
    run = Run(trainer, args.output, validation)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.stop)
    state = load_state(args.output)
    if state is None and args.branch is not None:
        state = load_state(args.branch)
        if state is None:
            raise FileNotFoundError(f"--branch: no checkpoint in {args.branch}")
    if state is not None:
        run.resume(state)
        return run
    if args.warm_start:
        load_weights(args.init, trainer.unet, trainer.text)
        trainer.restart_ema()
    run.start()
    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trainer; returns the exit status."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    run = prepare(args)
    try:
        run.loop(
            samples=args.samples,
            anneal_seconds=args.anneal_minutes * 60,
            save_seconds=args.save_minutes * 60,
            log_every=args.log_every,
            validate_every=args.validate_every,
        )
    finally:
        run.trainer.source.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
