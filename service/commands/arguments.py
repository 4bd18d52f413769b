"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_engine(parser: argparse.ArgumentParser) -> None:
    """``--bundle`` and ``--device``: which model, and where it runs. None: not given."""
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="model bundle made by `edgefill export` (default: the one that ships with Edgefill)",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="where the networks run (default: auto; `edgefill doctor` lists what works here)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: one JSON object on stdout instead of lines for people."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout, for machines"
    )
