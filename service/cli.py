"""``edgefill``: inpaint, serve, jobs, export, bench, doctor.

Exit codes: 0 when the work was done, 1 when it failed, 2 for wrong usage, 130 when interrupted,
141 when the reader of the output has gone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from service.commands import bench, doctor, export, inpaint, jobs, serve
from service.console import (
    INTERRUPTED,
    READER_GONE,
    CommandError,
    ReaderGoneError,
    checked_stdout,
    show_error,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; those of the process where None.

    Returns:
        The exit code.
    """
    try:
        with checked_stdout():
            return _run(argv)
    except CommandError as exc:
        show_error(exc)
        return exc.code
    except KeyboardInterrupt:
        show_error(CommandError("interrupted"))
        return INTERRUPTED
    except ReaderGoneError:
        return READER_GONE


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as exc:  # argparse has printed what there is to say
        return int(exc.code or 0)
    if sys.stdout is None and "json" in arguments:  # which all commands have that print a result
        raise CommandError("standard output is closed, and the result could not be printed")
    code: int = arguments.run(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgefill",
        description="Fill a hole in a picture from a sentence: "
        "a photo, a mask and a prompt go in, the filled photo comes out.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (inpaint, serve, jobs, export, bench, doctor):
        command.add(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        from service.commands.doctor import version_of

        print(f"edgefill {version_of('edgefill') or '(not installed)'}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
