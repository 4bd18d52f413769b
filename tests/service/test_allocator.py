"""What the C library is told about memory."""

import subprocess
import sys

FREED = """
import ctypes, os, sys
from service.allocator import keep_buffers, trim

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if sys.argv[1] != "as it is":
    assert keep_buffers()
size = 8 << 20
before = resident()
block = libc.malloc(size)
libc.memset(block, 1, size)
libc.free(block)
if sys.argv[1] == "given back":
    trim()
print(resident() - before)
"""


def left(how: str) -> int:
    """Bytes that a process holds after it has freed eight megabytes."""
    out = subprocess.run(
        [sys.executable, "-c", FREED, how], capture_output=True, text=True, check=True
    )
    return int(out.stdout)


def test_a_buffer_that_was_freed_stays_with_the_process() -> None:
    assert left("as it is") < 1 << 20
    assert left("kept") >= 8 << 20


def test_free_memory_can_be_given_back() -> None:
    assert left("given back") < 1 << 20
