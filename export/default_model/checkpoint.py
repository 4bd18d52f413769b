"""Complete training state on disk, written so that no crash can spoil it.

For: stopping and resuming at any moment. A file is written beside its place, flushed, and renamed;
the one before is kept. Imports torch and numpy; knows nothing of what the state means.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

STATE = "state.pt"
PREVIOUS = "state.previous.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes the state as the folder's newest checkpoint.

    Args:
        folder: Run folder, made if missing.
        state: Tensors, numbers, strings, and lists and dicts of these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / (STATE + ".new")
    with fresh.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    if (folder / STATE).exists():
        os.replace(folder / STATE, folder / PREVIOUS)
    os.replace(fresh, folder / STATE)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Reads the newest checkpoint of a folder.

    Only tensors and plain values are read, never code.

    Returns:
        The state, or None where the folder has no checkpoint.
    """
    for name in (STATE, PREVIOUS):
        # Between the two renames of a save that was cut short, only the previous one exists.
        if (folder / name).is_file():
            state: dict[str, Any] = torch.load(folder / name, map_location="cpu", weights_only=True)
            return state
    return None


def generator_to_text(rng: np.random.Generator) -> str:
    """The state of a numpy generator as JSON."""
    return json.dumps(rng.bit_generator.state)


def generator_from_text(text: str) -> np.random.Generator:
    """A numpy generator in the state that `generator_to_text` returned."""
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(text)
    return rng
