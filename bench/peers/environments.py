"""Virtual environments for the peers, and what they make of a checkpoint; each is made once.

Both lie in one folder that the caller names:

    NAME-HASH/           a virtual environment; HASH: its requirements and the version of Python
    models/HASH/NAME/    what a peer made of a checkpoint; HASH: of the checkpoint's files
    *.log                what pip said

Something half made is never taken for whole: it is renamed into place, or marked when done.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.peers.catalogue import Peer

MARK: Final = "edgefill-environment.txt"
Tell = Callable[[str], None]


class NotInstalledError(Exception):
    """An environment could not be made; the message is the last line of what the tool said."""


def folder_of(peer: Peer, root: Path) -> Path:
    """Where a peer's environment lies."""
    text = "\n".join((*peer.requirements, "--no-deps", *peer.bare, platform.python_version()))
    return root / f"{peer.environment}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def provide(peer: Peer, root: Path, tell: Tell) -> Path:
    """The interpreter of a peer's environment, which is made where it is missing.

    Args:
        peer: One with an environment.
        root: The folder of all of them.
        tell: Called with what takes long.

    Raises:
        NotInstalledError: When it cannot be made.
    """
    folder = folder_of(peer, root)
    python = folder / "bin" / "python"
    mark = folder / MARK
    if mark.is_file():
        return python
    tell(f"{peer.name}: making {folder.name}")
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    log = root / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    uv = shutil.which("uv")
    venv.create(folder, with_pip=uv is None, symlinks=True)
    if uv is None:
        install: list[str] = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    else:
        install = [uv, "pip", "install", "--python", str(python)]
    _run([*install, *peer.requirements], log)
    if peer.bare:
        _run([*install, "--no-deps", *peer.bare], log)
    mark.write_text("\n".join((*peer.requirements, *peer.bare)) + "\n", encoding="utf-8")
    return python


def fingerprint(checkpoint: Path) -> str:
    """Twelve letters that change with a checkpoint's files: names, sizes and times."""
    digest = hashlib.sha256(str(checkpoint.resolve()).encode())
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        state = file.stat()
        digest.update(
            f"{file.relative_to(checkpoint)} {state.st_size} {state.st_mtime_ns}".encode()
        )
    return digest.hexdigest()[:12]


def model_folder(name: str, root: Path, checkpoint: Path) -> Path:
    """Where what a peer makes of a checkpoint lies."""
    return root / "models" / fingerprint(checkpoint) / name


def last_line(text: str) -> str:
    """The last line with something in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(command)}\n")
        stream.flush()
        try:
            done = subprocess.run(
                command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, check=False
            )
        except OSError as exc:
            raise NotInstalledError(f"{command[0]}: {exc}") from exc
    if done.returncode:
        said = last_line(log.read_text(encoding="utf-8", errors="replace"))
        raise NotInstalledError(f"{Path(command[0]).name} could not install it: {said}")


def present() -> Path:
    """The interpreter that runs this, for peers whose packages it has."""
    return Path(sys.executable)
