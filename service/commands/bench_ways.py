"""``edgefill bench parity`` and ``batching``: ways to make pictures, side by side."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands.arguments import add_engine
from service.console import USAGE, CommandError

if TYPE_CHECKING:
    from service.commands.arguments import Commands

Measure = Callable[[argparse.Namespace], dict[str, Any]]


def add(actions: Commands, tell: Callable[[str], None]) -> list[tuple[Any, Measure, int]]:
    """Describe both measurements; each with what runs it and its number of repetitions."""
    parity = actions.add_parser(
        "parity",
        help="what bundles and speed-ups cost in quality, and bring in time",
        allow_abbrev=False,
    )
    parity.add_argument(
        "--bundle",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="model bundle; the first is what further ones are compared with "
        "(default: the one that ships with Edgefill)",
    )
    parity.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="FIELD=VALUE[,...]",
        help="compare the first bundle with itself, these fields of the request changed "
        "(default without further bundles: a list of speed-ups)",
    )
    parity.add_argument(
        "--shared",
        metavar="FIELD=VALUE[,...]",
        help="fields of the request that differ from the usual in all ways, the first too",
    )
    parity.add_argument(
        "--device",
        metavar="NAME",
        help="where the networks run (default: auto; `edgefill doctor` lists what works here)",
    )
    batching = actions.add_parser(
        "batching",
        help="requests that share the network's calls, against one at a time",
        allow_abbrev=False,
    )
    add_engine(batching)
    batching.add_argument(
        "--requests",
        type=int,
        default=260,
        metavar="N",
        help="requests of a round (default: 260)",
    )
    batching.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="of the first round's arrivals; every further round has the next (default: 1)",
    )
    return [
        (parity, lambda arguments: _parity(arguments, tell), 3),
        (batching, lambda arguments: _batching(arguments, tell), 3),
    ]


def _parity(arguments: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    from bench import parity
    from bench.variants import AS_ASKED, VARIANTS, Variant
    from engine import EngineError

    first, *further = arguments.bundle or [None]
    named = [variant("--variant", text) for text in arguments.variant]
    shared = variant("--shared", arguments.shared).request if arguments.shared else {}
    variants = [AS_ASKED, *(Variant(name=str(path), bundle=path) for path in further), *named]
    if len(variants) == 1:
        variants += VARIANTS
    variants = [dataclasses.replace(v, request={**shared, **v.request}) for v in variants]
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CommandError(f"{', '.join(twice)} is given twice", code=USAGE)
    try:
        return parity.measure(
            bundle=first,
            variants=variants,
            device=arguments.device or "auto",
            rounds=arguments.repetitions,
            tell=tell,
        )
    except EngineError as exc:
        raise CommandError(str(exc)) from exc


def variant(option: str, text: str) -> Any:
    """Read a way of ``bench.variants`` from an option."""
    from bench.variants import VariantError, parse

    try:
        return parse(text)
    except VariantError as exc:
        raise CommandError(f"{option}: {exc}", code=USAGE) from exc


def _batching(arguments: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    from bench import batching
    from engine import EngineError

    if arguments.seed < 0:
        raise CommandError(f"--seed is {arguments.seed}; must be at least 0", code=USAGE)
    if arguments.requests <= batching.SETTLING:
        least = f"must be at least {batching.SETTLING + 1}"
        raise CommandError(f"--requests is {arguments.requests}; {least}", code=USAGE)
    try:
        return batching.measure(
            bundle=arguments.bundle,
            device=arguments.device or "auto",
            requests=arguments.requests,
            rounds=arguments.repetitions,
            seed=arguments.seed,
            tell=tell,
        )
    except EngineError as exc:
        raise CommandError(str(exc)) from exc
