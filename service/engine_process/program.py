"""The child's process, before it is told what to open.

It needs the standard library only, so that ``edgefill serve`` can start it first of all: while the
settings are read here, the child loads its libraries. A child is started as a program of its own
and not by ``multiprocessing``: that would start a resource tracker beside it, run the caller's main
module again in the child, and pass arguments as pickles. It gets the parent's import path, its
environment without the service's own settings and keys, standard error, and one descriptor.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Final

_BURY_SECONDS: Final = 10.0
_BOOT: Final = """\
import json, sys
options = json.loads(sys.argv[1])
sys.path[:] = options["import_path"]
from service.engine_process.child import main
main(options)
"""


class Program:
    """A running child that waits for its first message. It must be started from a thread that
    outlives it: the kernel kills it when that thread ends, which is how it cannot be left behind.

    Args:
        ahead: Load the runtime too while it waits; for who needs longer to say what to open.

    Attributes:
        pid: Its process.
        socket: This side of the pair; it does not block.

    Raises:
        OSError: If the system has no room for another process.
    """

    def __init__(self, *, ahead: bool = False) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = {
            "socket": theirs.fileno(),
            "parent": os.getpid(),
            "ahead": ahead,
            "import_path": [entry for entry in sys.path if isinstance(entry, str)],
        }
        try:
            ours.setblocking(False)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is for data
                pass_fds=[theirs.fileno()],
                env={k: v for k, v in os.environ.items() if not k.upper().startswith("EDGEFILL_")},
                process_group=0,  # a Ctrl-C in the terminal is for the parent alone
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.socket: Final = ours
        self.pid: Final = self._process.pid

    def close(self) -> int | None:
        """Kill the child unless it is dead, and bury it.

        Returns:
            Its exit status, minus the signal where one killed it; None where it does not die.
        """
        self.socket.close()
        self._process.kill()
        try:
            return self._process.wait(_BURY_SECONDS)
        except subprocess.TimeoutExpired:  # stuck in the kernel, as a broken driver does it
            return None
