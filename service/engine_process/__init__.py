"""The engine in a process of its own, with the face of ``engine.Engine``.

A driver that crashes, a kernel that hangs or memory that runs out takes the child with it and not
the service: the child is killed, started again and warmed, and the requests that were inside it
are tried again.

    face.py         EngineProcess: open, submit, close
    line.py         who goes into the child next, and who has had enough attempts (policy only)
    patience.py     how long a child may be silent, how soon it is replaced (policy only)
    door.py         where other threads leave things for the supervisor
    supervisor.py   one thread that owns the child: starts it, feeds it, watches it, buries it
    program.py      the child's process, before it is told what to open
    worker.py       one child as its parent sees it: start, kill, how it died
    child.py        what runs in the child: the engine, its heartbeat, its answers
    crossing.py     requests, results and errors as plain values and arrays
    wire.py         the socket between the two, and the anonymous memory that pictures cross in

May import ``engine`` and the standard library, so that the child loads no web framework. Linux only
(memfd, descriptors passed over a socket, parent-death signal).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from service.engine_process.face import EngineProcess
    from service.engine_process.line import ProcessTicket
    from service.engine_process.supervisor import State

__all__ = ["EngineProcess", "ProcessTicket", "State"]

_HOMES: Final = {"EngineProcess": "face", "ProcessTicket": "line", "State": "supervisor"}


if not TYPE_CHECKING:  # a type checker would take every name for one that is there

    def __getattr__(name: str) -> object:
        """Import the parent's side when it is asked for: the child and the decoding processes,
        which use modules of this package, have no need of it."""
        if name in _HOMES:
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
