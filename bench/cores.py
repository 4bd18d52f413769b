"""How many cores a measurement may use."""

from __future__ import annotations

import os
from pathlib import Path


def physical_cores(cpuinfo: str | None = None) -> int:
    """Physical cores among the processors this process may run on; at least 1.

    Args:
        cpuinfo: Text of ``/proc/cpuinfo``; None: this machine's. Where it names no cores (as on
            Arm), every processor is one.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        except OSError:
            cpuinfo = ""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for block in cpuinfo.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        if "core id" in fields and int(fields.get("processor", -1)) in allowed:
            cores.add((fields.get("physical id", "0"), fields["core id"]))
    return len(cores) or len(allowed)
