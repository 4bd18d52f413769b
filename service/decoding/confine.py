"""What a decoding process gives up before it sees the first picture."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.decoding.syscalls import leave_few

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_NOBODY: Final = 65534

SOCKET: Final = 3
"""The descriptor of the socket to the parent."""

DESCRIPTORS: Final = SOCKET + 3
"""Descriptors there are room for: the socket and those before it, a parcel in, a parcel out."""

CPU_SECONDS: Final = 10
"""Processor time that one picture may take. The largest ones that are allowed take about one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """How narrow it gets.

    Attributes:
        parent: The process that it must not outlive.
        memory: Address space in bytes, that of the interpreter and its libraries included.
        file_size: Largest file that may be written, in bytes: a parcel.
    """

    parent: int
    memory: int
    file_size: int


def confine(confinement: Confinement) -> bool:
    """Give up files, processes, core dumps and, where there are any, a superuser's rights; bound
    the memory; die with the parent; leave few system calls.

    Returns:
        Whether system calls are filtered: see ``syscalls.leave_few``.

    Raises:
        OSError: If the system does not grant one of it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(OSError):  # a container may not allow it
        Path("/proc/self/oom_score_adj").write_text("900")
    _silence()
    os.chdir("/")
    os.umask(0o777)
    for what, most in (
        (resource.RLIMIT_AS, confinement.memory),
        (resource.RLIMIT_FSIZE, confinement.file_size),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(what, (most, most))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    _prctl(libc, _PR_SET_PDEATHSIG, int(signal.SIGKILL))  # last: a change of user clears it
    if os.getppid() != confinement.parent:  # it died before the line above
        os._exit(1)
    return leave_few(libc)


def allow_cpu(seconds: int = CPU_SECONDS) -> None:
    """Have the kernel end this process when it has worked so many seconds more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _silence() -> None:
    """Decoders write about damaged pictures to standard error; clients decide how much."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
