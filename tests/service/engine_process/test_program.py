"""A child that is started before it is told what to open."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import Bundle, BundleError, DeviceLost, SessionError
from service.engine_process import EngineProcess
from service.engine_process.program import Program
from tests.service.engine_process.helpers import a_request, gone, kill, until


def test_it_becomes_the_first_child_and_another_follows_it(bundle: Path) -> None:
    with (
        contextlib.closing(Program(ahead=True)) as program,
        EngineProcess.open(bundle, device="cpu", threads=1, program=program) as process,
    ):
        assert process.pid == program.pid
        process.inpaint(a_request(), timeout=30)
        kill(process)
        process.inpaint(a_request(), timeout=30)
        assert process.restarts == 1
        assert process.pid != program.pid


def test_one_that_died_while_it_waited_is_replaced(bundle: Path) -> None:
    with contextlib.closing(Program()) as program:
        os.kill(program.pid, signal.SIGKILL)
        until(lambda: gone(program.pid))
        with EngineProcess.open(bundle, device="cpu", threads=1, program=program) as process:
            process.inpaint(a_request(), timeout=30)
            assert process.restarts == 1


def test_one_that_is_told_nothing_ends_with_the_link() -> None:
    program = Program()
    program.socket.close()
    assert program._process.wait(20) == 0
    assert program.close() == 0


def test_an_error_meanwhile_ends_the_child(bundle: Path) -> None:
    def fail() -> None:
        raise LookupError("no")

    with contextlib.closing(Program()) as program:
        with pytest.raises(LookupError):
            EngineProcess.open(bundle, program=program, meanwhile=fail)
        assert gone(program.pid)


def test_a_runtime_that_cannot_be_loaded_ahead_is_told_of(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        contextlib.closing(Program(ahead=True)) as program,
        pytest.raises(SessionError, match="onnxruntime is installed but cannot be loaded: broken"),
    ):
        EngineProcess.open(bundle, program=program)
    assert "while it started" not in caplog.text  # the first child said so itself


def test_it_gets_none_of_the_services_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFILL_API_KEYS", "secret")
    with contextlib.closing(Program()) as program:
        assert b"EDGEFILL" not in Path(f"/proc/{program.pid}/environ").read_bytes()


def test_the_child_looks_into_the_files_that_are_only_listed_here(
    bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    data = bytearray((folder / "unet.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "unet.onnx").write_bytes(data)
    assert Bundle.read(folder).family == "sd1"
    with pytest.raises(BundleError, match=r"unet\.onnx: was changed: its SHA-256 is"):
        EngineProcess.open(folder, device="cpu")


def test_a_bundle_that_was_replaced_is_not_opened_by_the_next_child(
    bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    with EngineProcess.open(folder, device="cpu", threads=1) as process:
        before = process.bundle
        defaults = dataclasses.replace(before.defaults, num_inference_steps=7)
        dataclasses.replace(before, defaults=defaults).write()
        assert Bundle.open(folder).fingerprint != before.fingerprint
        kill(process)
        with pytest.raises(DeviceLost, match=rf"{folder}: was replaced by another bundle"):
            process.inpaint(a_request(), timeout=30)
        assert process.state == "stopped"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("service.engine_process.program", ["numpy", "engine"]),
        ("service.engine_process.child", ["asyncio", "service.engine_process.face"]),
        ("service.decoding.child", ["asyncio", "tokenizers", "engine.engine", "onnxruntime"]),
    ],
)
def test_a_process_loads_only_what_it_needs(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
