"""The peer's end of the conversation: JSON lines, questions on stdin, answers on stdout.

    python -P host.py MODULE [FOLDER ...]

runs ``bench.peers.MODULE`` in the interpreter's own environment; the folders are added to what it
may import. Questions:

    {"do": "prepare", "job": {...}, "output": FOLDER}          -> {"seconds"}
    {"do": "load", "job": {...}}                               -> {"seconds", "versions"}
    {"do": "paint", "item": {...}, "output": FILE.npy or null} -> {"begin", "end"}
    {"do": "paint_with_shared_noise", ...}                     -> the same
    {"do": "memory"}                                           -> {"peak_mb"}

``begin`` and ``end`` are seconds of the machine's monotonic clock, which all processes share. What
went wrong is answered as {"error": ONE LINE}. The process ends when stdin does. Whatever a library
prints goes to stderr.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bench.peers.job import Runner

_BENCH: Final = Path(__file__).parent.parent
_KILOBYTE: Final = 1024


class Host:
    """Answers questions with the runner of one module."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._runner: Runner | None = None

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked; an exception is an answer too."""
        try:
            match question["do"]:
                case "prepare":
                    return self._prepare(question)
                case "load":
                    return self._load(question)
                case "paint" | "paint_with_shared_noise":
                    return self._paint(question)
                case "memory":
                    return {"peak_mb": peak_mb()}
                case other:
                    return {"error": f"cannot {other!r}"}
        except Exception as exc:
            traceback.print_exc()
            words = str(exc).strip().splitlines() or [""]
            return {"error": f"{type(exc).__name__}: {words[-1]}"}

    def _type(self) -> type[Runner]:
        found: type[Runner] = importlib.import_module(f"bench.peers.{self._module}").Peer
        return found

    def _prepare(self, question: Mapping[str, Any]) -> dict[str, Any]:
        from bench.peers.job import Job

        begin = time.perf_counter()
        self._type().prepare(Job(**question["job"]), Path(question["output"]))
        return {"seconds": time.perf_counter() - begin}

    def _load(self, question: Mapping[str, Any]) -> dict[str, Any]:
        from bench.peers.job import Job

        begin = time.perf_counter()
        kind = self._type()
        self._runner = kind(Job(**question["job"]))
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "versions": {name: _version(name) for name in kind.packages}}

    def _paint(self, question: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        from bench.peers.job import Item

        if self._runner is None:
            return {"error": "nothing is loaded"}
        item = Item.read(question["item"])
        work = getattr(self._runner, question["do"])
        begin = time.monotonic()
        picture = work(item)
        end = time.monotonic()
        if question["output"] is not None:
            np.save(question["output"], picture)
        return {"begin": begin, "end": end}


def peak_mb() -> float:
    """The largest resident memory of this process so far, in MB.

    ``getrusage`` would count what the parent held when it started us.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return round(int(value.split()[0]) * _KILOBYTE / 1e6, 1)
    raise OSError("/proc/self/status has no VmHWM")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _provide_bench() -> None:
    """Make ``bench`` importable without anything that lies beside it."""
    place = str(_BENCH / "__init__.py")
    spec = importlib.util.spec_from_file_location(
        "bench", place, submodule_search_locations=[str(_BENCH)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    spec.loader.exec_module(module)


def main(arguments: list[str]) -> int:
    """Answer until stdin ends."""
    module, *folders = arguments
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path[:0] = folders
    _provide_bench()
    host = Host(module)
    for line in sys.stdin:
        print(json.dumps(host.answer(json.loads(line))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
