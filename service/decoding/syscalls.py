"""The system calls that a decoding process has left: those that memory, its socket and its parcels
need. No file can be opened, no connection made, no program or process started, nobody signalled.

The filter is seccomp's, in the classic BPF of the kernel's ``linux/filter.h`` and
``linux/seccomp.h``; whatever is not listed fails with EPERM.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from typing import Final

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_EPERM: Final = 0x00050001

_LOAD: Final = 0x20
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the kernel's ``struct seccomp_data``; of the argument the low half, little-endian."""

# name: number on x86_64, number on aarch64
_CALLS: Final = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "exit": (60, 93),
    "fcntl": (72, 25),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "getrandom": (318, 278),
    "memfd_create": (319, 279),
    "membarrier": (324, 283),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "rseq": (334, 293),
}
_LIMITS: Final = (302, 261)
"""prlimit64, which is for this process only: its first argument must be 0."""

_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Which number of a call, and the kernel's name of the architecture."""


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def leave_few(libc: ctypes.CDLL) -> bool:
    """Give up all other system calls, for good.

    Returns:
        False where the machine is of another kind, or its kernel has no filters.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    code = _filter(*machine)
    program = _Program(len(code) // 8, code)
    done = libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    return bool(done == 0)


def _filter(column: int, architecture: int) -> bytes:
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_JUMP_IF_EQUAL, architecture, yes=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    for numbers in _CALLS.values():
        steps += [_step(_JUMP_IF_EQUAL, numbers[column], no=1), _step(_RETURN, _ALLOW)]
    steps += [
        _step(_JUMP_IF_EQUAL, _LIMITS[column], no=3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_JUMP_IF_EQUAL, 0, no=1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _EPERM),
    ]
    return b"".join(steps)


def _step(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; ``yes`` and ``no`` are how many are jumped over."""
    return struct.pack("=HBBI", code, yes, no, value)
