"""Memory of the GPU that a process holds, asked of ``nvidia-smi``."""

from __future__ import annotations

import os
import subprocess
from typing import Any, Final

SECONDS: Final = 20
_ASK: Final = (
    "nvidia-smi",
    "--query-compute-apps=pid,used_memory",
    "--format=csv,noheader,nounits",
)


def gpu_memory(pid: int | None = None) -> dict[str, Any]:
    """``{"mb": ...}`` of a process, its own where None; null with the reason where there is none.

    ``nvidia-smi`` counts in MiB, and on an integrated GPU, whose memory is the machine's, it does
    not count.
    """
    try:
        done = subprocess.run(_ASK, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        return {"mb": None, "reason": "there is no nvidia-smi"}
    except (OSError, subprocess.TimeoutExpired) as exc:
        return {"mb": None, "reason": f"nvidia-smi: {exc}"}
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or [""]
        return {"mb": None, "reason": f"nvidia-smi: {said[0]}"}
    return of_process(done.stdout, os.getpid() if pid is None else pid)


def of_process(table: str, pid: int) -> dict[str, Any]:
    """Read lines of ``pid, MiB``; a process with contexts on several GPUs has several."""
    held = 0.0
    for line in table.splitlines():
        owner, _, used = line.partition(",")
        if owner.strip() == str(pid):
            if not used.strip().isdecimal():
                return {"mb": None, "reason": f"nvidia-smi says {used.strip()}"}
            held += int(used) * 2**20 / 1e6
    if not held:
        return {"mb": None, "reason": "this process holds no memory of a GPU"}
    return {"mb": round(held, 1)}
