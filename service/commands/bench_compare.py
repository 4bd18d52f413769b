"""``edgefill bench compare``: the same work on Edgefill and on its peers."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from service.commands.pictures import read_mask, read_picture
from service.console import USAGE, CommandError, reason

if TYPE_CHECKING:
    from service.commands.arguments import Commands

ENVIRONMENTS: Final = Path("~/.cache/edgefill/peers")


def add(actions: Commands) -> None:
    """Describe the measurement."""
    parser = actions.add_parser(
        "compare",
        help="Edgefill beside diffusers, optimum, OpenVINO GenAI and stable-diffusion.cpp",
        description="The same pictures by Edgefill and by its peers, each in a process and a "
        "virtual environment of its own, which the command makes. A peer that fails is a row that "
        "says why.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder in the diffusers layout; `python -m bench.checkpoints sd15 DIR` makes one",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="Edgefill's export of that checkpoint (default: it is made, which needs the export "
        "extra)",
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=ENVIRONMENTS,
        metavar="DIR",
        help=f"where the peers' environments and models are kept (default: {ENVIRONMENTS})",
    )
    parser.add_argument(
        "--peers", metavar="NAMES", help="names separated by commas (default: all that do the work)"
    )
    parser.add_argument("--size", type=int, default=512, metavar="N", help="default: 512")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument("--scheduler", default="lcm", metavar="NAME", help="default: lcm")
    parser.add_argument("--guidance", type=float, default=1.0, metavar="G", help="default: 1")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="default: 7")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of the processor, for everybody (default: one per physical core)",
    )
    parser.add_argument(
        "--holding",
        choices=("auto", "all", "one"),
        default="auto",
        help="keep all models open, or open one at a time (default: by the memory)",
    )
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="an edit of a known picture: 13 %% of it is filled, only the prompt and the seed are "
        "new; Edgefill as it comes, and at smaller working sizes, beside diffusers",
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="picture (default: the demo's); needs --mask"
    )
    parser.add_argument("--mask", type=Path, metavar="FILE", help="its mask, white is filled")
    parser.add_argument(
        "--in-place", action="store_true", help="run every peer in the present environment"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="only make environments and models, measure nothing"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from bench import compare, report, tables

    plan = compare.Plan(**_options(arguments))
    if arguments.prepare:
        found = compare.prepare(plan, _tell)
        for name, error in found.items():
            print(f"{name}: {error or 'ready'}")
        return int(any(found.values()))
    before = report.conditions()
    result: dict[str, Any] = {"kind": "interactive" if plan.interactive else "compare"}
    result |= {"conditions": before} | compare.measure(plan, _tell)
    print(tables.table(result))
    if arguments.json is not None:
        try:
            report.save(arguments.json, result)
        except OSError as exc:
            raise CommandError(f"cannot write {arguments.json}: {reason(exc)}") from exc
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is asked for, as ``bench.compare.Plan`` takes it.

    Raises:
        CommandError: For a value that cannot be.
    """
    from bench.cores import physical_cores
    from bench.peers.catalogue import BASELINE, FULL, INTERACTIVE, PEERS
    from engine.schedulers import SCHEDULERS

    names = INTERACTIVE if arguments.interactive else FULL
    if arguments.peers is not None:
        names = tuple(name for name in arguments.peers.split(",") if name)
    for name in names:
        if name not in PEERS:
            raise _wrong(f"--peers has {name!r}; allowed: {', '.join(PEERS)}")
    if BASELINE not in names or len(set(names)) != len(names):
        raise _wrong(f"--peers is {','.join(names)}; must name {BASELINE} and nobody twice")
    for option, value, least in (
        ("--steps", arguments.steps, 1),
        ("--rounds", arguments.rounds, 1),
        ("--seed", arguments.seed, 0),
        ("--threads", 1 if arguments.threads is None else arguments.threads, 1),
    ):
        if value < least:
            raise _wrong(f"{option} is {value}; must be at least {least}")
    if arguments.size % 8 or not 64 <= arguments.size <= 1024:
        raise _wrong(f"--size is {arguments.size}; must be a multiple of 8 from 64 to 1024")
    if not (math.isfinite(arguments.guidance) and 0 <= arguments.guidance <= 50):
        raise _wrong(f"--guidance is {arguments.guidance:g}; must be from 0 to 50")
    if arguments.scheduler not in SCHEDULERS:
        raise _wrong(f"--scheduler is {arguments.scheduler}; allowed: {', '.join(SCHEDULERS)}")
    if (arguments.image is None) != (arguments.mask is None):
        raise _wrong("--image and --mask are given together or not at all")
    for option, folder, file in (
        ("--checkpoint", arguments.checkpoint, "model_index.json"),
        ("--bundle", arguments.bundle, "bundle.json"),
    ):
        if folder is not None and not (folder / file).is_file():
            raise _wrong(f"{option} is {folder}, which has no {file}")
    options = {
        "checkpoint": arguments.checkpoint.resolve(),
        "bundle": None if arguments.bundle is None else arguments.bundle.resolve(),
        "peers": tuple(names),
        "environments": arguments.environments.expanduser().resolve(),
        "threads": physical_cores() if arguments.threads is None else arguments.threads,
    }
    same = ("in_place", "size", "steps", "scheduler", "guidance", "rounds", "seed", "holding")
    options |= {name: getattr(arguments, name) for name in (*same, "interactive")}
    return options | _pictures(arguments)


def _pictures(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.image is None:
        return {}
    return {"image": read_picture(arguments.image), "mask": read_mask(arguments.mask)}


def _wrong(text: str) -> CommandError:
    return CommandError(text, code=USAGE)


def _tell(text: str) -> None:
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)
