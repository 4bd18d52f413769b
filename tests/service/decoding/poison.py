"""A decoding process that does as its pictures say: for what no picture is known to do.

What a picture's first word says is done, then the rest of it is decoded.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import time
from typing import Any

import numpy as np

from engine import image
from service.decoding import child, confine, worker

BOOT = worker._BOOT.replace("service.decoding.child", __name__)
"""What starts such a process."""


def main(options: dict[str, Any]) -> None:
    """The process's own main, with a decoder that obeys."""
    vars(child)["decode_picture"] = obey
    child.main(options)


def obey(data: bytes, **options: Any) -> Any:
    """In the place of ``engine.image.decode_picture``."""
    word, _, rest = data.partition(b" ")
    do = DEEDS.get(word)
    if do is None:
        return image.decode_picture(data, **options)
    done = do()
    return image.decode_picture(rest, **options) if done is None else done


def spin(seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def work() -> None:
    """Work longer than is allowed, the allowance being a second."""
    confine.allow_cpu(1)
    spin()


def refused(*deeds: Any) -> None:
    """End the process unless each of the deeds is refused by the system."""
    for deed in deeds:
        try:
            deed()
        except PermissionError:
            continue
        os._exit(3)


DEEDS: dict[bytes, Any] = {
    b"crash": lambda: ctypes.string_at(0),
    b"exit": lambda: os._exit(0),
    b"fill": lambda: np.ones(1 << 31, np.uint8),
    b"raise": lambda: [][0],
    b"lie": lambda: np.zeros((5, 5, 4), np.uint8),
    b"spin": spin,
    b"work": work,
    b"sleep": lambda: time.sleep(0.2),
    b"open": lambda: refused(
        lambda: os.open("/etc/passwd", os.O_RDONLY), lambda: os.open("/proc/self/maps", os.O_RDONLY)
    ),
    b"connect": lambda: refused(
        lambda: socket.socket(socket.AF_INET), lambda: socket.socket(socket.AF_UNIX)
    ),
    b"fork": lambda: refused(os.fork, lambda: os.execv("/bin/true", ["true"])),
    b"write": lambda: refused(
        lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR), lambda: os.mkdir("/tmp/poison")
    ),
    b"kill": lambda: refused(
        lambda: os.kill(os.getppid(), signal.SIGTERM), lambda: os.kill(os.getpid(), 0)
    ),
    b"limit": lambda: refused(
        lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)),
    ),
}
