"""The memory of a process and of all that it started.

RSS counts a page that several processes share once for each of them; PSS counts it once in all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PARTS: Final = {
    b"service.engine_process.child": "engine",
    b"service.decoding.child": "decoding",
}
_KILOBYTE: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process.

    Attributes:
        part: ``"server"``, ``"engine"``, ``"decoding"``, or ``"other"`` for another child.
        rss: Resident bytes.
        pss: Resident bytes, each shared page by its share; None where the system does not tell.
    """

    part: str
    rss: int
    pss: int | None


def tree(pid: int) -> tuple[Process, ...]:
    """A server's process and its children of all generations; those that end meanwhile are left
    out.

    Raises:
        OSError: If there is no such process.
    """
    found = [_look(pid, "server")]
    for child in _children(pid):
        found += _descend(child)
    return tuple(found)


def _descend(pid: int) -> list[Process]:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        part = next((name for words, name in _PARTS.items() if words in command), "other")
        found = [_look(pid, part)]
        for child in _children(pid):
            found += _descend(child)
    except OSError:
        return []
    return found


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _look(pid: int, part: str) -> Process:
    status = Path(f"/proc/{pid}/status").read_text()
    rss = re.search(r"^VmRSS:\s*(\d+) kB", status, re.MULTILINE)
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except PermissionError:  # a process that gave up its rights shows them to root only
        rollup = ""
    pss = re.search(r"^Pss:\s*(\d+) kB", rollup, re.MULTILINE)
    return Process(
        part=part,
        rss=int(rss[1]) * _KILOBYTE if rss else 0,
        pss=int(pss[1]) * _KILOBYTE if pss else None,
    )
