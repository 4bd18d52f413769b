"""Bytes that must keep coming: whoever sends more slowly than the floor is not waited for.

A total time alone lets a sender hold a place for all of it with a byte now and then (slow-loris).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Final

FLOOR: Final = 16 * 1024
"""Bytes per second that must have come on average, once the grace is over."""


async def collect(
    pieces: AsyncIterable[bytes],
    *,
    grace: float,
    admit: Callable[[int], None],
    floor: float = FLOOR,
) -> bytes:
    """All pieces together.

    Args:
        pieces: What comes.
        grace: Seconds in which nothing need come.
        admit: Told the size of each piece as it comes; raises when it is too much.
        floor: Least bytes per second from then on.

    Raises:
        TimeoutError: When at some time fewer bytes had come than the floor asks for.
    """
    begin = asyncio.get_running_loop().time()
    body = bytearray()
    async with asyncio.timeout_at(begin + grace) as limit:
        async for piece in pieces:
            admit(len(piece))
            body += piece
            limit.reschedule(begin + grace + len(body) / floor)
    return bytes(body)
