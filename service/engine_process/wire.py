"""The socket between the two processes, and the memory that pictures cross in.

Messages are single packets of JSON over a SOCK_SEQPACKET pair: one arrives whole or not at all,
whenever either side is killed. Whatever can be large is in a parcel, an anonymous memory file whose
descriptor travels with the message. It has no name, so that nothing can be left behind in
/dev/shm, no size limit of a container's /dev/shm applies, and the kernel frees it with its last
owner. Parcels are read and written as files and never mapped: a peer that died in the middle of one
costs an error, not a bus error.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

MAX_TEXT: Final = 8000
"""Characters of an error or a log line that cross; the rest is cut."""

_MAX_PACKET: Final = 128 * 1024  # below the kernel's default buffer of 208 KiB
_DTYPES: Final = ("uint8", "float32")
_HEAD: Final = struct.Struct("<Q")
_FD: Final = struct.Struct("i")

Message: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


class WireError(Exception):
    """The other side said something that is no message."""


class Link:
    """One end of the socket. Messages may be sent from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket: Final = sock

    def fileno(self) -> int:
        """The descriptor, for selectors."""
        return self._socket.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, and descriptors with it.

        Raises:
            BlockingIOError: If the socket does not block and is full; nothing was sent.
            ConnectionError: If the other side is gone.
        """
        packet = json.dumps(message).encode()
        if len(packet) > _MAX_PACKET:
            raise WireError(f"a message of {len(packet)} bytes; at most {_MAX_PACKET} are allowed")
        socket.send_fds(self._socket, [packet], list(fds))

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors, which are the caller's to close; None at the end.

        Raises:
            BlockingIOError: If the socket does not block and has none.
            WireError: If what came is no message.
        """
        try:
            packet, fds = self._receive()
        except ConnectionResetError:  # told once, when the peer died with unread messages of ours;
            packet, fds = self._receive()  # what it said before is still there
        if not packet:
            return None
        try:
            message = json.loads(packet)
        except ValueError as exc:
            close_all(fds)
            raise WireError(f"a packet of {len(packet)} bytes is not JSON") from exc
        if not isinstance(message, dict):
            close_all(fds)
            raise WireError(f"a packet holds {type(message).__name__}, not an object")
        return message, fds

    def _receive(self) -> tuple[bytes, list[int]]:
        """One packet. Not ``socket.recv_fds``, which forgets the flags that it is given."""
        room = socket.CMSG_LEN(_FD.size)
        packet, extras, _, _ = self._socket.recvmsg(_MAX_PACKET, room, socket.MSG_CMSG_CLOEXEC)
        fds = [
            fd
            for level, kind, data in extras
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for (fd,) in _FD.iter_unpack(data[: len(data) // _FD.size * _FD.size])
        ]
        return packet, fds

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def wrap(values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any] | None]) -> int:
    """Put plain values and arrays into a new parcel; arrays that are None are left out.

    Returns:
        Its descriptor, the caller's to close.
    """
    given = {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}
    listing = [[name, str(array.dtype), array.shape] for name, array in given.items()]
    head = json.dumps({"values": dict(values), "arrays": listing}).encode()
    fd = os.memfd_create("edgefill")
    try:
        offset = _write(fd, _HEAD.pack(len(head)) + head, 0)
        for array in given.values():
            if array.size:
                offset = _write(fd, array.reshape(-1).view(np.uint8).data, offset)
    except BaseException:
        os.close(fd)
        raise
    return fd


def unwrap(fd: int) -> tuple[dict[str, Any], Arrays]:
    """The values and arrays of a parcel, copied out of it.

    Raises:
        WireError: If it is not whole.
    """
    size = os.fstat(fd).st_size
    prefix = bytearray(_HEAD.size)
    offset = _read(fd, prefix, 0)
    (length,) = _HEAD.unpack(prefix)
    if length > size:
        raise WireError(f"a parcel of {size} bytes announces a head of {length}")
    head = bytearray(length)
    offset = _read(fd, head, offset)
    try:
        described = json.loads(bytes(head))
        values, listing = dict(described["values"]), list(described["arrays"])
    except (ValueError, KeyError, TypeError) as exc:
        raise WireError("a parcel's head is not understood") from exc
    arrays: Arrays = {}
    for name, dtype, shape in listing:
        itemsize = np.dtype(dtype).itemsize if dtype in _DTYPES else size + 1
        if itemsize * math.prod(shape) > size - offset:
            raise WireError(f"a parcel of {size} bytes announces {dtype} {shape}")
        array = np.empty(shape, dtype)
        if array.size:
            offset = _read(fd, array.reshape(-1).view(np.uint8).data, offset)
        arrays[name] = array
    return values, arrays


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)


def _write(fd: int, data: bytes | memoryview, offset: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
    return offset


def _read(fd: int, into: bytearray | memoryview, offset: int) -> int:
    view = memoryview(into)
    while view:
        count = os.preadv(fd, [view], offset)
        if count == 0:
            raise WireError(f"a parcel ends {len(view)} bytes early")
        view, offset = view[count:], offset + count
    return offset
