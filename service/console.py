"""What the command line shows: errors with their hints, and progress bars.

Data goes to stdout; everything here goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

FAILED = 1
USAGE = 2
INTERRUPTED = 130
READER_GONE = 141
"""What a shell sees of a tool that ``SIGPIPE`` ended, as in ``edgefill doctor | head -1``."""

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


class ReaderGoneError(Exception):
    """Whoever read our stdout does not want any more of it."""


def show_error(error: CommandError) -> None:
    """Print an error and its hint to stderr, where that can be written."""
    if sys.stderr is None:  # closed by the caller; print would take stdout instead
        return
    with contextlib.suppress(OSError):
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)


def warn(message: str) -> None:
    """Print a warning to stderr, where that can be written."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):
        print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def checked_stdout() -> Iterator[None]:
    """Let all that is printed meanwhile arrive, or say why it did not.

    Raises:
        CommandError: When stdout cannot be written, such as a full disk.
        ReaderGoneError: When it is a pipe that nobody reads any more.
    """
    if sys.stdout is None:  # closed by the caller, and print does nothing
        yield
        return
    with contextlib.redirect_stdout(cast(Any, _CheckedStdout(sys.stdout))):
        yield
        sys.stdout.flush()


class _CheckedStdout:
    """stdout, whose errors cannot be taken for those of other files."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._errors():
            return int(self._stream.write(text))

    def flush(self) -> None:
        with self._errors():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            self._discard()
            if isinstance(exc, BrokenPipeError):
                raise ReaderGoneError from exc
            raise CommandError(f"cannot write to standard output: {reason(exc)}") from exc

    def _discard(self) -> None:
        """Let what is still buffered go nowhere, so that the interpreter can end in peace."""
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def reason(error: OSError) -> str:
    """Why the system refused something, without the path."""
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def progress(title: str) -> Iterator[Advance]:
    """A bar on stderr where stderr is a terminal, else nothing.

    The function it yields may be called from any thread.
    """
    if sys.stderr is None or not sys.stderr.isatty():
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
