"""The README's code is run, and its commands are those that CI runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = [
    (skipped, language, text, README[: match.start()].count("\n") + 1)
    for match in BLOCK.finditer(README)
    for skipped, language, text in [match.groups()]
]
PYTHON = [(text, line) for _, language, text, line in BLOCKS if language == "python"]
SHELL = [
    (text, line)
    for skipped, language, text, line in BLOCKS
    if language == "bash" and not skipped and not text.startswith("pip install")
]
INSTALLS = [text.strip() for _, _, text, _ in BLOCKS if text.startswith("pip install")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the pictures that the README speaks of."""
    shutil.copy(ROOT / "service" / "demo" / "photo.png", tmp_path / "photo.png")
    shutil.copy(ROOT / "service" / "demo" / "mask.png", tmp_path / "mask.png")
    return tmp_path


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 2
    assert len(SHELL) >= 2


def test_python_blocks_run_one_after_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for text, line in PYTHON:
        exec(compile("\n" * line + text, "README.md", "exec"), names)


@pytest.mark.parametrize(("text", "line"), SHELL, ids=[f"line {line}" for _, line in SHELL])
def test_shell_blocks_run(folder: Path, text: str, line: int) -> None:
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    command = bin_folder / "edgefill"
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from service.cli import main\nsys.exit(main())\n"
    )
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", text], cwd=folder, env=environment, check=True, timeout=120)


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.sub(r"--quiet |-q\b *", "", script)
    for install in INSTALLS[:2]:
        for part in install.split(" && "):
            assert part in commands, f"{part!r} is not in .ci/run"


def test_the_changelog_knows_the_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"[{version[1]}]" in changelog or "[Unreleased]" in changelog
