"""What the command line shows: errors with their hints, and progress bars.

Data goes to stdout; everything here goes to stderr.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

FAILED = 1
USAGE = 2
INTERRUPTED = 130

Advance = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class CommandError(Exception):
    """An expected failure of a command.

    Attributes:
        message: One sentence for ``error: ...``.
        hint: What may mend it, for ``hint: ...``.
        code: The exit code.
    """

    def __init__(self, message: str, *, hint: str | None = None, code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def show_error(error: CommandError) -> None:
    """Print an error and its hint to stderr."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def reason(error: OSError) -> str:
    """Why the system refused something, without the path."""
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def progress(title: str) -> Iterator[Advance]:
    """A bar on stderr where stderr is a terminal, else nothing.

    The function it yields may be called from any thread.
    """
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda stage, done, total: bar.update(
            task, description=stage, completed=done, total=total
        )
