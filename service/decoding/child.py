"""What runs in a decoding process: one picture after the other, and nothing else.

It ends when its parent dies (a signal from the kernel, and the end of the socket), when it is
killed, and after any error that is no refusal of a picture: whatever is left in it is not trusted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any, Final, NoReturn

import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.header import PictureLimits
from engine.image import decode_mask, decode_picture, encode_jpeg, encode_png
from service.allocator import keep_buffers
from service.decoding.confine import SOCKET, Confinement, allow_cpu, confine
from service.engine_process.wire import MAX_TEXT, Link, Message, close_all, unwrap, wrap

Pixels = npt.NDArray[np.uint8]

FAILED: Final = 70
"""Exit status after an error that was told to the parent."""


def main(options: dict[str, Any]) -> NoReturn:
    """Give up every right that is not needed, and serve until the parent lets go."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if options["socket"] != SOCKET:
        os.dup2(options["socket"], SOCKET)
        os.close(options["socket"])
    link = Link(socket.socket(fileno=SOCKET))
    limits = PictureLimits(**options["limits"])
    try:
        keep_buffers()
        cv2.setNumThreads(1)
        _rehearse(limits)
        filtered = confine(Confinement(**options["confinement"]))
        _rehearse(limits)
        link.send({"kind": "ready", "filtered": filtered})
        _serve(link, limits)
    except BaseException as exc:
        with contextlib.suppress(OSError):
            link.send({"kind": "failed", "error": repr(exc)[:MAX_TEXT]})
        os._exit(FAILED)
    os._exit(0)


def _serve(link: Link, limits: PictureLimits) -> None:
    while (received := link.receive()) is not None:
        message, fds = received
        allow_cpu()
        try:
            answer, out = _answer(message, fds[0], limits)
        finally:
            close_all(fds)
        link.send(answer, out)
        close_all(out)


def decode(kind: str, data: bytes, *, field: str, limits: PictureLimits) -> Pixels:
    """Decode a ``"picture"`` or a ``"mask"``.

    Raises:
        InputError: If it is no good PNG or JPEG within the limits.
    """
    how = {"picture": decode_picture, "mask": decode_mask}[kind]
    return how(data, field=field, limits=limits)


def _answer(message: Message, fd: int, limits: PictureLimits) -> tuple[Message, list[int]]:
    """The reply to a message, and the parcel that goes with it."""
    _, arrays = unwrap(fd)
    data, field = arrays.pop("data").tobytes(), message["field"]
    try:
        pixels = decode(message["kind"], data, field=field, limits=limits)
    except InputError as exc:
        return {"kind": "refused", "message": exc.message[:MAX_TEXT]}, []
    return {"kind": "done"}, [wrap({}, {"pixels": pixels})]


def _rehearse(limits: PictureLimits) -> None:
    """Decode a little of everything: before the process is confined, so that nothing has to be
    loaded later; and after, so that what it lacks is found out now."""
    picture = np.full((64, 64, 3), 127, np.uint8)
    for data in (encode_png(picture), encode_jpeg(picture)):
        for kind in ("picture", "mask"):
            decode(kind, data, field="rehearsal", limits=limits)
        damaged = data[:200] + bytes(100) + data[300:]
        with contextlib.suppress(InputError):
            decode("picture", damaged, field="rehearsal", limits=limits)
    allow_cpu()
    parcel = wrap({}, {"data": picture})
    close_all(_answer({"kind": "picture", "field": "rehearsal"}, parcel, limits)[1])
    os.close(parcel)
