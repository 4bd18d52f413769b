"""A pool of encoded composites, refreshed a little at every step.

For: unlimited data at little cost. Composing and encoding a sample costs about half as much as
training on it, so each sample stays for a few visits, every time with other noise, another timestep
and another caption. Imports torch and numpy; never touches files.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from export.default_model.compose import Composer
from export.default_model.model import LATENT_CHANNELS, LATENT_FACTOR
from export.default_model.objective import Batch
from export.default_model.vocabulary import caption

CPU_BATCH = 8
"""Pictures the autoencoder takes at a time on a CPU: more do not fit its caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Composites of one chunk, stacked.

    Attributes:
        images: (N, S, S, 3) uint8 RGB.
        masks: (N, S, S) uint8, 1 in the hole.
        labels: (N, 3) int16: noun, colour, style.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int16]


def compose_chunk(composer: Composer, seed: tuple[int, int], count: int) -> Pictures:
    """Makes the chunk of composites that belongs to a seed."""
    rng = np.random.default_rng(seed)
    made = [composer.compose(rng) for _ in range(count)]
    return Pictures(
        images=np.stack([c.image for c in made]),
        masks=np.stack([c.mask for c in made]),
        labels=np.array([(c.noun, c.colour, c.style) for c in made], np.int16),
    )


_composer: Composer | None = None


def _start_worker(composer: Composer) -> None:
    global _composer
    # The trainer decides when to stop; Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    _composer = composer


def _work(seed: tuple[int, int], count: int) -> Pictures:
    if _composer is None:
        raise RuntimeError("worker: composer is not set; _start_worker has not run")
    return compose_chunk(_composer, seed, count)


class ChunkSource:
    """Chunks of composites in a fixed order, made here or by worker processes ahead of time.

    Chunk k depends on (seed, k) only, so the number of workers changes nothing but the speed.
    """

    def __init__(self, composer: Composer, *, seed: int, workers: int = 0) -> None:
        """Starts the workers, if any."""
        self.composer = composer
        self.seed = seed
        self.workers = workers
        self._ahead: dict[tuple[int, int], Future[Pictures]] = {}
        self._executor = (
            ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(composer,),
            )
            if workers
            else None
        )

    def get(self, number: int, count: int) -> Pictures:
        """Returns chunk `number` of `count` composites."""
        if self._executor is None:
            return compose_chunk(self.composer, (self.seed, number), count)
        for k in range(number, number + 2 * self.workers):
            if (k, count) not in self._ahead:
                self._ahead[k, count] = self._executor.submit(_work, (self.seed, k), count)
        return self._ahead.pop((number, count)).result()

    def close(self) -> None:
        """Stops the workers."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


class Captioner:
    """Turns labels into token numbers, remembering every sentence once tokenised."""

    def __init__(self, tokenizer: CLIPTokenizer, tokens: int) -> None:
        """Keeps the tokenizer and the number of text positions."""
        self.tokenizer = tokenizer
        self.tokens = tokens
        self._known: dict[str, Tensor] = {}

    def encode(self, sentence: str) -> Tensor:
        """Token numbers of one sentence, (T,) int64."""
        if sentence not in self._known:
            ids = self.tokenizer(
                sentence,
                padding="max_length",
                truncation=True,
                max_length=self.tokens,
                return_tensors="pt",
            ).input_ids
            self._known[sentence] = ids[0]
        return self._known[sentence]

    def draw(self, rng: np.random.Generator, labels: NDArray[np.int16]) -> Tensor:
        """Draws a caption for every row of labels (B, 3); (B, T) int64."""
        rows = labels.tolist()
        return torch.stack([self.encode(caption(rng, n, c, s)) for n, c, s in rows])


def to_tensor(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 between -1 and 1."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    return (pixels / 127.5 - 1).contiguous()


def latent_masks(masks: Tensor) -> Tensor:
    """Masks on the latent grid: by nearest in even rows, by maximum in odd rows.

    diffusers' pipeline shrinks masks by nearest; an engine that cares for thin strokes takes the
    maximum of every cell. The model sees both.

    Args:
        masks: (N, 1, H, W) float32, 0 or 1.

    Returns:
        (N, 1, H // 8, W // 8) float32, 0 or 1.
    """
    small = F.max_pool2d(masks, LATENT_FACTOR)
    small[::2] = masks[::2, :, ::LATENT_FACTOR, ::LATENT_FACTOR]
    return small


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderTiny, pictures: Pictures, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Encodes pictures, whole and with a grey hole.

    Returns:
        Scaled latents (N, 4, h, w), scaled latents of the masked pictures (N, 4, h, w), and latent
        masks (N, 1, h, w), all float32.
    """
    images = to_tensor(pictures.images, device)
    masks = torch.from_numpy(pictures.masks).to(device)[:, None].float()
    both = torch.cat([images, images * (masks < 0.5)])
    size = CPU_BATCH if device.type == "cpu" else len(both)
    parts = [
        vae.encode(part.contiguous(memory_format=torch.channels_last)).latents
        for part in both.split(size)
    ]
    whole, masked = (torch.cat(parts).float() * vae.config.scaling_factor).contiguous().chunk(2)
    return whole, masked, latent_masks(masks)


class LatentPool:
    """A ring of encoded samples on the training device."""

    def __init__(
        self,
        source: ChunkSource,
        vae: AutoencoderTiny,
        *,
        capacity: int,
        chunk: int,
        device: torch.device,
    ) -> None:
        """Allocates the ring; `fill` or `load_state_dict` must follow.

        Args:
            source: Where composites come from.
            vae: Frozen autoencoder on `device`.
            capacity: Number of samples held; a multiple of `chunk`.
            chunk: Samples replaced by one call of `refresh`.
            device: Where the ring lies.

        Raises:
            ValueError: If `capacity` is not a positive multiple of `chunk`.
        """
        if chunk < 2 or chunk % 2 or capacity < chunk or capacity % chunk:
            raise ValueError(
                f"capacity: {capacity}; a multiple of chunk ({chunk}, even, 2 or more) is needed"
            )
        cells = source.composer.settings.size // LATENT_FACTOR
        shape = (capacity, LATENT_CHANNELS, cells, cells)
        self.source = source
        self.vae = vae
        self.capacity = capacity
        self.chunk = chunk
        self.device = device
        self.made = 0
        self.latents = torch.zeros(shape, dtype=torch.float16, device=device)
        self.masked = torch.zeros(shape, dtype=torch.float16, device=device)
        self.masks = torch.zeros((capacity, 1, cells, cells), dtype=torch.float16, device=device)
        self.labels = np.zeros((capacity, 3), np.int16)

    def fill(self) -> Iterator[int]:
        """Fills the ring for the first time; yields the number of samples made so far."""
        while self.made < self.capacity:
            self.refresh()
            yield self.made

    def refresh(self) -> None:
        """Replaces the oldest chunk by new samples."""
        pictures = self.source.get(self.made // self.chunk, self.chunk)
        start = self.made % self.capacity
        span = slice(start, start + self.chunk)
        whole, masked, masks = encode_pictures(self.vae, pictures, self.device)
        self.latents[span] = whole.half()
        self.masked[span] = masked.half()
        self.masks[span] = masks.half()
        self.labels[span] = pictures.labels
        self.made += self.chunk

    def draw(self, rng: np.random.Generator, count: int, captioner: Captioner) -> Batch:
        """Draws a batch without repetition, with fresh captions."""
        rows = rng.choice(min(self.made, self.capacity), count, replace=False)
        index = torch.from_numpy(rows).to(self.device)
        return Batch(
            latents=self.latents[index].float(),
            masked=self.masked[index].float(),
            mask=self.masks[index].float(),
            tokens=captioner.draw(rng, self.labels[rows]).to(self.device),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the same samples."""
        return {
            "made": self.made,
            "latents": self.latents.cpu(),
            "masked": self.masked.cpu(),
            "masks": self.masks.cpu(),
            "labels": torch.from_numpy(self.labels.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the state of an earlier pool.

        Raises:
            ValueError: If its shape differs.
        """
        if state["latents"].shape != self.latents.shape:
            raise ValueError(
                f"pool: {tuple(state['latents'].shape)} in the checkpoint,"
                f" {tuple(self.latents.shape)} in the settings; both must agree"
            )
        self.made = state["made"]
        self.latents.copy_(state["latents"])
        self.masked.copy_(state["masked"])
        self.masks.copy_(state["masks"])
        self.labels[:] = state["labels"].numpy()
