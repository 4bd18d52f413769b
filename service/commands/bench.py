"""``edgefill bench``: numbers with their conditions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands import bench_compare, bench_ways
from service.commands.arguments import add_engine
from service.console import USAGE, CommandError, reason

if TYPE_CHECKING:
    from service.commands.arguments import Commands

Measure = Callable[[argparse.Namespace], dict[str, Any]]


def add(commands: Commands) -> None:
    """Describe the command and what it measures."""
    parser = commands.add_parser(
        "bench",
        help="measure how fast it is here",
        description="Measure, and say under which conditions.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="measurements", metavar="WHAT", required=True)
    latency = actions.add_parser(
        "latency", help="one 512x512 picture, stage by stage", allow_abbrev=False
    )
    add_engine(latency)
    latency.add_argument(
        "--cold",
        type=int,
        default=3,
        metavar="N",
        help="processes that make their first picture; 0: none (default: 3)",
    )
    latency.add_argument(
        "--request",
        metavar="FIELD=VALUE[,...]",
        help="fields of the request, such as num_inference_steps=4,scheduler=lcm",
    )
    load = actions.add_parser(
        "load", help="what the service adds to a picture, and overload", allow_abbrev=False
    )
    load.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="how long each of the four cases of overload lasts; 0: none (default: 60)",
    )
    load.add_argument(
        "--endurance",
        type=int,
        default=4000,
        metavar="N",
        help="pictures that memory is watched over, twice; 0: none (default: 4000)",
    )
    load.add_argument(
        "--lanes",
        type=int,
        default=1,
        metavar="N",
        help="pictures that the engine of the overload makes at a time (default: 1)",
    )
    bench_compare.add(actions)
    deadline = actions.add_parser(
        "deadline", help="answers in time, and what they cost in quality", allow_abbrev=False
    )
    add_engine(deadline)
    stream = actions.add_parser(
        "stream", help="the realtime stream under a rate of edits", allow_abbrev=False
    )
    stream.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="how long edits come at the rate (default: 60)",
    )
    stream.add_argument(
        "--rate", type=float, default=10.0, metavar="R", help="edits a second (default: 10)"
    )
    start = actions.add_parser(
        "start",
        help="a server from its start to its first picture, and its memory",
        allow_abbrev=False,
    )
    start.add_argument(
        "--cold",
        action="store_true",
        help="empty the system's file cache before every start, which takes root",
    )
    ways = bench_ways.add(actions, _tell)
    kinds = (
        (latency, _latency, 20),
        (load, _load, 40),
        (deadline, _deadline, 12),
        (stream, _stream, 20),
        (start, _start, 5),
        *ways,
    )
    for action, run, default in kinds:
        action.add_argument(
            "--repetitions",
            type=int,
            default=default,
            metavar="N",
            help=f"how often it is measured (default: {default})",
        )
        action.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
        action.set_defaults(run=_reported(run))


def _reported(measure: Measure) -> Callable[[argparse.Namespace], int]:
    """Measure, print, and keep the figures."""

    def run(arguments: argparse.Namespace) -> int:
        from bench import report

        if arguments.repetitions < 1:
            least = f"--repetitions is {arguments.repetitions}; must be at least 1"
            raise CommandError(least, code=USAGE)
        found = {"conditions": report.conditions()} | measure(arguments)
        for name, figures in found.items():
            print(report.show(name.replace("_", " "), figures))
        if arguments.json is not None:
            try:
                report.save(arguments.json, found)
            except OSError as exc:
                raise CommandError(f"cannot write {arguments.json}: {reason(exc)}") from exc
        return 0

    return run


def _latency(arguments: argparse.Namespace) -> dict[str, Any]:
    from bench import latency
    from engine import EngineError

    fields = bench_ways.variant("--request", arguments.request).request if arguments.request else {}
    if arguments.cold < 0:
        raise CommandError(f"--cold is {arguments.cold}; must be at least 0", code=USAGE)
    try:
        return latency.measure(
            bundle=arguments.bundle,
            device=arguments.device or "auto",
            repetitions=arguments.repetitions,
            fields=fields,
            cold_starts=arguments.cold,
            tell=_tell,
        )
    except EngineError as exc:
        raise CommandError(
            str(exc), hint="`edgefill doctor` shows what works on this machine"
        ) from exc


def _deadline(arguments: argparse.Namespace) -> dict[str, Any]:
    from bench import deadline
    from engine import EngineError

    try:
        return deadline.measure(
            bundle=arguments.bundle,
            device=arguments.device or "auto",
            repetitions=arguments.repetitions,
            tell=_tell,
        )
    except EngineError as exc:
        raise CommandError(
            str(exc), hint="`edgefill doctor` shows what works on this machine"
        ) from exc


def _load(arguments: argparse.Namespace) -> dict[str, Any]:
    from bench import endurance, load, overhead
    from bench.client import ClientError
    from bench.server import ServerError
    from engine import EngineError

    if arguments.seconds and arguments.seconds < load.LEAST_SECONDS:
        least = f"must be 0 or at least {load.LEAST_SECONDS:g}"
        raise CommandError(f"--seconds is {arguments.seconds:g}; {least}", code=USAGE)
    if arguments.lanes < 1:
        raise CommandError(f"--lanes is {arguments.lanes}; must be at least 1", code=USAGE)
    if arguments.endurance and arguments.endurance < endurance.LEAST:
        least = f"must be 0 or at least {endurance.LEAST}"
        raise CommandError(f"--endurance is {arguments.endurance}; {least}", code=USAGE)
    try:
        found = {"face_overhead": overhead.measure(repetitions=arguments.repetitions, tell=_tell)}
        if arguments.seconds:
            found["overload"] = load.measure(
                seconds=arguments.seconds, lanes=arguments.lanes, tell=_tell
            )
        if arguments.endurance:
            found["endurance"] = endurance.measure(requests=arguments.endurance, tell=_tell)
    except (ServerError, ClientError, EngineError, OSError) as exc:
        raise CommandError(str(exc)) from exc
    return found


def _stream(arguments: argparse.Namespace) -> dict[str, Any]:
    from bench import stream
    from bench.client import ClientError
    from bench.server import ServerError

    if not arguments.seconds >= stream.LEAST_SECONDS:
        least = f"must be at least {stream.LEAST_SECONDS:g}"
        raise CommandError(f"--seconds is {arguments.seconds:g}; {least}", code=USAGE)
    if not 0 < arguments.rate <= 100:
        raise CommandError(f"--rate is {arguments.rate:g}; must be 0 to 100", code=USAGE)
    try:
        return stream.measure(
            seconds=arguments.seconds,
            rate=arguments.rate,
            repetitions=arguments.repetitions,
            tell=_tell,
        )
    except (ServerError, ClientError, OSError, TimeoutError) as exc:
        raise CommandError(str(exc) or "the stream did not end its edits") from exc


def _start(arguments: argparse.Namespace) -> dict[str, Any]:
    from bench import start
    from bench.client import ClientError
    from bench.server import ServerError

    try:
        return start.measure(repetitions=arguments.repetitions, cold=arguments.cold, tell=_tell)
    except (start.ColdError, ServerError, ClientError, OSError) as exc:
        raise CommandError(str(exc)) from exc


def _tell(text: str) -> None:
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)
