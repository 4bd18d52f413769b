"""The same inpainting job on Edgefill and on what one would take instead.

Every peer is a process of its own. In each round every peer fills the same picture once, one after
the other, and the order moves on by one from round to round; ratios are taken within a round, and
their medians quoted. A peer is warmed up with one picture after each time its model is opened.
No picture and no prompt comes twice, so that nobody can answer from a cache. All models stay open
where the memory holds them; else each is opened anew for its turn, outside the time that counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from bench.peers.catalogue import PEERS, Peer
from bench.peers.environments import (
    NotInstalledError,
    model_folder,
    present,
    provide,
)
from bench.peers.job import Job
from bench.peers.process import PeerError, PeerProcess, command_for
from bench.rows import Turn, rows
from bench.scenes import Scene, scenes
from bench.tegrastats import Sampler
from engine.schedulers import DIFFUSERS_CLASSES, diffusers_options

Tell = Callable[[str], None]
Holding = Literal["auto", "all", "one"]

MEMORY_PER_BYTE: Final = 1.7
"""Resident memory of an open model for each byte of its checkpoint: weights and activations."""

PREPARE_SECONDS: Final = 3600.0
LOAD_SECONDS: Final = 1800.0
PAINT_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared.

    Attributes:
        checkpoint: In the diffusers layout.
        bundle: Edgefill's export of it; None: it is made with the others' models.
        peers: Names of ``bench.peers.catalogue.PEERS``.
        environments: Folder for environments and models.
        in_place: Run every peer in the present environment.
        size: Side of the square picture in pixels; a multiple of 8.
        steps: Denoising steps.
        scheduler: Edgefill's name.
        guidance: Guidance scale.
        rounds: How many.
        seed: Of the first round; each has its own.
        threads: Of the processor, for each peer.
        holding: Whether all models stay open, or one at a time is; ``"auto"`` by the memory.
        interactive: The picture is known and only the prompt is new from round to round.
        image: A picture of one's own in place of the demo's, (H, W, 3).
        mask: Its mask (H, W).
    """

    checkpoint: Path
    bundle: Path | None
    peers: tuple[str, ...]
    environments: Path
    in_place: bool
    size: int
    steps: int
    scheduler: str
    guidance: float
    rounds: int
    seed: int
    threads: int
    holding: Holding = "auto"
    interactive: bool = False
    image: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    mask: np.ndarray[Any, np.dtype[np.uint8]] | None = None


@dataclass(slots=True)
class _Entry:
    """A peer on its way through the comparison."""

    peer: Peer
    python: Path
    job: Job
    process: PeerProcess | None = None
    error: str | None = None
    versions: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    turns: dict[int, Turn] = dataclasses.field(default_factory=dict)


def prepare(plan: Plan, tell: Tell) -> dict[str, str | None]:
    """Make the environments and models of all peers; why not, for each that cannot be used."""
    with tempfile.TemporaryDirectory(prefix="edgefill-bench-") as name:
        return {entry.peer.name: entry.error for entry in _entries(plan, Path(name), tell)}


def measure(plan: Plan, tell: Tell) -> dict[str, Any]:
    """The figures: ``task``, and one of ``rows`` for each peer."""
    with tempfile.TemporaryDirectory(prefix="edgefill-bench-") as name:
        folder = Path(name)
        entries = _entries(plan, folder, tell)
        made = scenes(plan, folder)
        holding = _holding(plan, entries)
        with Sampler() as energy:
            try:
                for index in range(plan.rounds):
                    for entry in rotated(entries, index):
                        _turn(entry, made, index, folder, keep=holding == "all", tell=tell)
            finally:
                for entry in entries:
                    _close(entry)
            found = rows(
                [(entry.peer, entry.error, entry.versions, entry.turns) for entry in entries],
                energy=energy,
                mask=np.load(made[0].mask) if plan.interactive else None,
            )
        return {"task": _task(plan, holding, made), "rows": found}


def rotated(entries: Sequence[Any], by: int) -> list[Any]:
    """The same in the order of round ``by``: whoever was first is last in the next."""
    start = by % len(entries) if entries else 0
    return [*entries[start:], *entries[:start]]


def _entries(plan: Plan, folder: Path, tell: Tell) -> list[_Entry]:
    """All peers with environment and model, or with the reason why not."""
    entries = []
    for name in plan.peers:
        peer = PEERS[name]
        model = plan.checkpoint
        if peer.environment is None and plan.bundle is not None:
            model = plan.bundle
        elif peer.model is not None:
            model = model_folder(peer.model, plan.environments, plan.checkpoint)
        entry = _Entry(peer, present(), _job(plan, peer, model))
        entries.append(entry)
        try:
            if peer.environment is not None and not plan.in_place:
                entry.python = provide(peer, plan.environments, tell)
            if model not in (plan.checkpoint, plan.bundle) and not model.is_dir():
                _make_model(entry, model, folder, tell)
        except (NotInstalledError, PeerError) as exc:
            entry.error = str(exc)
            tell(f"{name}: {exc}")
    return entries


def _job(plan: Plan, peer: Peer, model: Path) -> Job:
    return Job(
        checkpoint=str(plan.checkpoint),
        model=str(model),
        width=plan.size,
        height=plan.size,
        steps=plan.steps,
        scheduler=plan.scheduler,
        scheduler_class=DIFFUSERS_CLASSES[plan.scheduler],
        scheduler_options=diffusers_options(plan.scheduler),
        guidance=plan.guidance,
        threads=plan.threads,
        options=dict(peer.options),
    )


def _make_model(entry: _Entry, model: Path, folder: Path, tell: Tell) -> None:
    """Let the peer make its model beside its place, and move it there when it is whole."""
    tell(f"{entry.peer.name}: exporting the checkpoint")
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.parent, prefix="unfinished-") as name:
        output = Path(name) / model.name
        with _process(entry, folder) as process:
            process.ask(
                "prepare",
                timeout=PREPARE_SECONDS,
                job=dataclasses.asdict(entry.job),
                output=str(output),
            )
        output.rename(model)


def _process(entry: _Entry, folder: Path) -> PeerProcess:
    beside_us = entry.peer.environment is None
    command = command_for(entry.python, entry.peer.module, beside_us=beside_us)
    return PeerProcess(command, log=folder / f"{entry.peer.name}.log")


def _holding(plan: Plan, entries: Sequence[_Entry]) -> Literal["all", "one"]:
    """Whether all models can be open at once in the memory that is free."""
    if plan.holding != "auto":
        return plan.holding
    weights = sum(path.stat().st_size for path in plan.checkpoint.rglob("*") if path.is_file())
    needed = MEMORY_PER_BYTE * weights * sum(entry.error is None for entry in entries)
    return "all" if needed <= _available_memory() else "one"


def _available_memory() -> int:
    """Bytes that new processes can have without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def _turn(
    entry: _Entry, made: Sequence[Scene], index: int, folder: Path, *, keep: bool, tell: Tell
) -> None:
    """One peer's part of a round; when it fails, its row says why and it takes no further part."""
    if entry.error is not None:
        return
    try:
        load = warm_up = None
        if entry.process is None:
            load, warm_up = _open(entry, made[0], folder)
        scene = made[index + 1]
        entry.turns[index] = turn = _paint(entry, scene, index, folder)
        turn.load_s, turn.warm_up_s = load, warm_up
        tell(f"round {index + 1}: {entry.peer.name}: {turn.seconds:.2f} s")
    except PeerError as exc:
        entry.error = str(exc)
        tell(f"{entry.peer.name}: {exc}")
        _close(entry)
    if not keep:
        _close(entry)


def _open(entry: _Entry, scene: Scene, folder: Path) -> tuple[float, float]:
    """Start the peer, open its model, paint one picture; the seconds of the last two."""
    entry.process = process = _process(entry, folder)
    job = dataclasses.asdict(entry.job)
    loaded = process.ask("load", timeout=LOAD_SECONDS, job=job)
    entry.versions = loaded["versions"]
    warm = process.ask("paint", timeout=PAINT_SECONDS, item=scene.message(), output=None)
    return loaded["seconds"], warm["end"] - warm["begin"]


def _paint(entry: _Entry, scene: Scene, index: int, folder: Path) -> Turn:
    process = entry.process
    assert process is not None
    output = folder / f"{entry.peer.name}-{index}.npy"
    item = scene.message()
    done = process.ask("paint", timeout=PAINT_SECONDS, item=item, output=str(output))
    peak = process.ask("memory", timeout=PAINT_SECONDS)["peak_mb"]
    compared = output
    if entry.peer.shared_noise and index == 0:
        compared = folder / f"{entry.peer.name}-{index}-shared.npy"
        process.ask(
            "paint_with_shared_noise", timeout=PAINT_SECONDS, item=item, output=str(compared)
        )
    return Turn(
        begin=done["begin"],
        end=done["end"],
        peak_mb=peak,
        picture=np.load(output),
        compared=np.load(compared),
    )


def _close(entry: _Entry) -> None:
    process, entry.process = entry.process, None
    if process is not None:
        with contextlib.suppress(OSError):
            process.stop()


def _task(plan: Plan, holding: str, made: Sequence[Scene]) -> dict[str, Any]:
    """What was asked of everybody."""
    return {
        "checkpoint": plan.checkpoint.name,
        "size": f"{plan.size}x{plan.size}",
        "steps": plan.steps,
        "scheduler": plan.scheduler,
        "guidance": plan.guidance,
        "threads": plan.threads,
        "rounds": plan.rounds,
        "models_open": "all" if holding == "all" else "one at a time",
        "interactive": plan.interactive,
        "mask_share": round(made[0].mask_share(), 3),
    }
