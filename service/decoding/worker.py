"""One decoding process as its parent sees it: started, asked, killed."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.header import PictureLimits
from service.decoding.confine import Confinement
from service.engine_process.wire import Link, Message, WireError, close_all, unwrap, wrap

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["picture", "mask"]
How: TypeAlias = Literal["crashed", "failed", "late", "lied"]
Pixels: TypeAlias = npt.NDArray[np.uint8]

_BOOT: Final = """\
import json, sys
options = json.loads(sys.argv[1])
sys.path[:] = options["import_path"]
from service.decoding.child import main
main(options)
"""
_START_SECONDS: Final = 60.0
_BURY_SECONDS: Final = 10.0
_HEAD_BYTES: Final = 4096
"""Room for what a parcel says of its pixels."""

_MOST_TEXT: Final = 300


class WorkerLost(Exception):
    """The process is dead, or had to be killed; the message says of what.

    Attributes:
        how: It ``"crashed"``, it ``"failed"`` with an error of its own, it was ``"late"``, or it
            ``"lied"``: said what no decoding process says.
    """

    def __init__(self, how: How, message: str) -> None:
        super().__init__(message)
        self.how = how


class Worker:
    """A running process. It must be started from a thread that outlives it: the kernel kills it
    when that thread ends, which is how it cannot be left behind.

    Args:
        limits: What is decoded at all.

    Raises:
        OSError: If the system has no room for another process.
    """

    def __init__(self, limits: PictureLimits) -> None:
        self._limits = limits
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps(_options(limits, theirs))],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is for data
                pass_fds=[theirs.fileno()],
                env=_environment(limits),
                process_group=0,  # a Ctrl-C in the terminal is for the parent alone
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._link: Final = Link(ours)
        self.pid: Final = self._process.pid

    def wait_ready(self) -> None:
        """Wait until it takes pictures.

        Raises:
            WorkerLost: If it died, or took more than a minute.
        """
        message, fds = self._hear(time.monotonic() + _START_SECONDS)
        close_all(fds)
        if message["kind"] != "ready":
            raise self._lost("failed", str(message.get("error", message["kind"])))
        if not message.get("filtered"):
            logger.warning("this machine's kernel does not filter system calls")

    def ask(self, kind: Kind, data: bytes, *, field: str, seconds: float) -> Pixels:
        """Have one picture decoded.

        Args:
            kind: What it is decoded as.
            data: The file's bytes.
            field: What the picture is for, named in the error.
            seconds: How long it may take.

        Raises:
            InputError: If the picture is refused.
            WorkerLost: If the process did not survive it, or did not answer in time.
            OSError: If there is no memory to hand it over.
        """
        deadline = time.monotonic() + seconds
        parcel = wrap({}, {"data": np.frombuffer(data, np.uint8)})
        try:
            self._link.send({"kind": kind, "field": field}, [parcel])
        except ConnectionError as exc:
            raise self._lost("crashed", str(exc)) from exc
        finally:
            os.close(parcel)
        message, fds = self._hear(deadline)
        try:
            if message["kind"] == "refused":
                raise InputError(field, str(message.get("message"))[:_MOST_TEXT])
            if message["kind"] != "done":
                raise self._lost("failed", str(message.get("error", message["kind"])))
            return self._pixels(kind, fds)
        finally:
            close_all(fds)

    def alive(self) -> bool:
        """Whether it has not died by itself."""
        return self._process.poll() is None

    def peak_bytes(self) -> int:
        """Most memory that it used so far, in bytes; 0 when it is dead."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status + "VmHWM: 0 kB")[0]) * 1024

    def kill(self) -> str:
        """Kill the process unless it is dead, and bury it; returns how it died."""
        self._link.close()
        self._process.kill()
        try:
            status = self._process.wait(_BURY_SECONDS)
        except subprocess.TimeoutExpired:  # stuck in the kernel
            logger.error("decoding process %d does not die", self.pid)
            return "does not die"
        return f"signal {signal.strsignal(-status)}" if status < 0 else f"exit status {status}"

    def _hear(self, deadline: float) -> tuple[Message, list[int]]:
        """The next message, which has a kind."""
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise self._lost("late", "took too long")
        try:
            received = self._link.receive()
        except ConnectionError as exc:
            raise self._lost("crashed", str(exc)) from exc
        except WireError as exc:
            raise self._lost("lied", str(exc)) from exc
        if received is None:
            raise self._lost("crashed", "died")
        message, fds = received
        if not isinstance(message.get("kind"), str):
            close_all(fds)
            raise self._lost("lied", "said something that is no message")
        return message, fds

    def _pixels(self, kind: Kind, fds: list[int]) -> Pixels:
        """The pixels in the parcel. The process may have been taken over: what it says is held
        against what a picture can be."""
        most = self._limits.max_pixels * 3 + _HEAD_BYTES
        if len(fds) != 1 or os.fstat(fds[0]).st_size > most:
            raise self._lost("lied", "answered with a parcel of the wrong size")
        try:
            _, arrays = unwrap(fds[0])
        except (WireError, ValueError, TypeError, ArithmeticError, RecursionError) as exc:
            raise self._lost("lied", str(exc)) from exc
        pixels = arrays.get("pixels")
        channels = (3,) if kind == "picture" else ()
        if pixels is None or pixels.dtype != np.uint8 or not pixels.size:
            raise self._lost("lied", "answered without pixels")
        if pixels.ndim < 2 or pixels.shape[2:] != channels:
            raise self._lost("lied", f"answered with pixels of shape {pixels.shape}")
        return pixels

    def _lost(self, how: How, why: str) -> WorkerLost:
        return WorkerLost(how, f"{why} ({self.kill()})")


def _environment(limits: PictureLimits) -> dict[str, str]:
    """What the interpreter needs to start, and nothing of the service's own."""
    needed = {k: v for k, v in os.environ.items() if k.startswith(("PYTHON", "LD_", "LC_", "LANG"))}
    return {
        **needed,
        "OPENBLAS_NUM_THREADS": "1",
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(limits.max_pixels),
        "OPENCV_LOG_LEVEL": "SILENT",
    }


def _options(limits: PictureLimits, sock: socket.socket) -> dict[str, Any]:
    largest = limits.max_pixels * 3 + _HEAD_BYTES
    confinement = Confinement(
        parent=os.getpid(),
        memory=memory_for(limits),
        file_size=largest,
    )
    return {
        "socket": sock.fileno(),
        "limits": dataclasses.asdict(limits),
        "confinement": dataclasses.asdict(confinement),
        "import_path": [entry for entry in sys.path if isinstance(entry, str)],
    }


def memory_for(limits: PictureLimits) -> int:
    """Address space in bytes in which every picture within the limits can be decoded.

    With OpenCV 5.0 the interpreter and its libraries take 370 MB before the first picture, and the
    hungriest form, a PNG of 16-bit RGBA, 16 bytes a pixel. Threads of other builds take more.
    """
    return (1 << 30) + 20 * limits.max_pixels
