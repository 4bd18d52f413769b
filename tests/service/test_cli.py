"""The command line: what it prints where, what it refuses, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import engine
from engine.image import MAX_BYTES, decode_mask, decode_picture, sniff
from service.cli import main
from service.commands.inpaint import DEMO
from tests.service.stub_engine import COLOUR, StubEngine

STAGES = (
    "queue",
    "prepare",
    "text encoder",
    "vae encoder",
    "unet",
    "vae decoder",
    "paste",
    "safety checker",
    "total",
)


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "Engine", StubEngine)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def files(tmp_path: Path, photo: bytes, mask: bytes) -> list[str]:
    (tmp_path / "photo.png").write_bytes(photo)
    (tmp_path / "mask.png").write_bytes(mask)
    return ["--image", "photo.png", "--mask", "mask.png", "--prompt", "a red apple"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "inpaint", "--demo")
    assert (code, err) == (0, "")
    path = tmp_path / "edgefill-demo.png"
    assert out.splitlines()[0] == f"picture: {path} (512x512, seed 2)"
    assert "model: default bundle on stub" in out
    for stage in STAGES:
        assert f"\n{stage}: " in out
    made = decode_picture(path.read_bytes())
    before = decode_picture((DEMO / "photo.png").read_bytes())
    hole = decode_mask((DEMO / "mask.png").read_bytes()) >= 128
    assert made.shape == before.shape == (512, 512, 3)
    assert np.array_equal(made[~hole], before[~hole])
    assert (made[hole] == COLOUR).all()


def test_the_demos_pictures_are_plain_and_licensed() -> None:
    photo = cv2.imread(str(DEMO / "photo.png"), cv2.IMREAD_UNCHANGED)
    mask = cv2.imread(str(DEMO / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert photo is not None
    assert mask is not None
    assert (photo.shape, mask.shape) == ((512, 512, 3), (512, 512))
    assert 0.1 < (mask >= 128).mean() < 0.5
    assert "CC0-1.0" in (DEMO / "README.md").read_text()


def test_json(capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path) -> None:
    wanted = ["--output", "o.png", "--seed", "5", "--steps", "3", "--guidance", "2", "--json"]
    code, out, err = run(capsys, "inpaint", *files, *wanted)
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert out.count("\n") == 1
    assert record["output"] == [str(tmp_path / "o.png")]
    assert (record["width"], record["height"], record["seed"]) == (96, 64, 5)
    assert (record["num_inference_steps"], record["guidance_scale"]) == (3, 2.0)
    assert record["device"] == "stub"
    assert set(record["timings"]) == {stage.replace(" ", "_") for stage in STAGES}


def test_samples_have_numbers(
    capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path
) -> None:
    code, out, _ = run(capsys, "inpaint", *files, "--output", "o.JPG", "--samples", "2")
    assert code == 0
    for i in range(2):
        path = tmp_path / f"o-{i}.JPG"
        assert str(path) in out
        assert sniff(path.read_bytes()).format == "jpeg"
    assert not (tmp_path / "o.JPG").exists()


def test_outputs_are_replaced_and_size_is_taken(
    capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "o.png"
    path.write_text("old")
    code, _, _ = run(
        capsys, "inpaint", *files, "--output", "o.png", "--width", "80", "--height", "70"
    )
    assert code == 0
    assert decode_picture(path.read_bytes()).shape == (70, 80, 3)
    assert sorted(os.listdir(tmp_path)) == ["mask.png", "o.png", "photo.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--output", "o.png", "--steps", "0"], 2, "error: --steps is 0; must be between 1 and"),
        (["--output", "o.png", "--guidance", "99"], 2, "error: --guidance is 99.0; must be"),
        (["--output", "o.png", "--strength", "2"], 2, "error: --strength is 2.0; must be"),
        (["--output", "o.png", "--width", "5"], 2, "error: --width is 5; must be"),
        (["--output", "o.png", "--samples", "5"], 2, "error: --samples is 5; must be"),
        (["--output", "o.png", "--region", "all"], 2, "invalid choice"),
        (["--output", "o.png", "--steps", "few"], 2, "invalid int value"),
        (["--output", "o.png", "--colour", "red"], 2, "unrecognized arguments"),
        (["--output", "o.gif"], 2, "error: --output: o.gif has the suffix '.gif'; allowed: .png"),
        (["--output", "o"], 2, "allowed: .png, .jpg, .jpeg"),
        ([], 2, "error: missing: --output"),
        (["--output", "no/o.png"], 1, "error: cannot write no/o.png: no such file or directory"),
        (["--output", "folder.png"], 1, "error: cannot write folder.png: it is there and not"),
        (["--output", "o.png", "--image", "no.png"], 1, "error: cannot read no.png: no such file"),
        (["--output", "o.png", "--mask", "folder.png"], 1, "error: cannot read folder.png: is a"),
        (["--output", "o.png", "--image", "fifo.png"], 1, "error: cannot read fifo.png: is not a"),
        (["--output", "o.png", "--mask", "/dev/zero"], 1, "error: cannot read /dev/zero: is not a"),
        (["--output", "o.png", "--mask", "large.png"], 1, f"large.png: has {MAX_BYTES + 1} bytes"),
        (["--output", "fifo.png"], 1, "error: cannot write fifo.png: it is there and not a plain"),
        (["--output", "/dev/null"], 2, "error: --output: /dev/null has the suffix ''; allowed"),
        (["--output", f"{'o' * 252}.png"], 1, "o.png: file name too long"),
        (["--output", f"{'o' * 250}.png", "--samples", "2"], 1, "-0.png: file name too long"),
        (["--output", "o.png", "--mask", "text.png"], 1, "error: text.png: is neither a PNG nor a"),
        (["--output", "o.png", "--device", "abacus"], 1, "error: device 'abacus' is not supported"),
        (["--output", "o.png", "--bundle", "no"], 1, "error: no: is not a directory"),
    ],
)  # fmt: skip
def test_expected_errors(
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", MAX_BYTES + 1)
    os.mkfifo(tmp_path / "fifo.png")
    found, out, err = run(capsys, "inpaint", *files, *arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "o.png").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StubEngine, "open", lambda *_, **__: pytest.fail("the engine was opened"))
    assert run(capsys, "inpaint", *files, "--output", "no/o.png")[0] == 1
    os.mkdir("folder.png")
    assert run(capsys, "inpaint", *files, "--output", "folder.png")[0] == 1
    code, _, err = run(capsys, "inpaint", *files, "--output", f"{'o' * 252}.png")
    assert code == 1
    assert err.endswith("o.png: file name too long\n")


def test_a_name_as_long_as_names_can_be(
    capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path
) -> None:
    name = f"{'o' * 251}.png"
    assert run(capsys, "inpaint", *files, "--output", name)[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["mask.png", name, "photo.png"]


def test_a_picture_that_cannot_be_written_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", refused)
    wanted = (1, "", "error: cannot write o.png: no space left on device\n")
    assert run(capsys, "inpaint", *files, "--output", "o.png") == wanted
    assert sorted(os.listdir(tmp_path)) == ["mask.png", "photo.png"]

    def gone(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", gone)  # the first error is the one that is told
    assert run(capsys, "inpaint", *files, "--output", "o.png") == wanted


def test_hints(capsys: pytest.CaptureFixture[str], files: list[str]) -> None:
    _, _, err = run(capsys, "inpaint", *files, "--output", "o.png", "--device", "abacus")
    assert err.splitlines()[1] == "hint: `edgefill doctor` shows what works on this machine"
    _, _, err = run(capsys, "inpaint")
    assert err.startswith("error: missing: --image, --mask, --prompt, --output\nhint: ")


def test_interruption_cancels(
    capsys: pytest.CaptureFixture[str], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = []

    def interrupted(self: engine.Ticket, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.Ticket, "result", interrupted)
    monkeypatch.setattr(engine.Ticket, "cancel", lambda self: cancelled.append(self))
    code, _, err = run(capsys, "inpaint", *files, "--output", "o.png")
    assert (code, err) == (130, "error: interrupted\n")
    assert len(cancelled) == 1


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2
    assert run(capsys, "paint")[0] == 2
    for arguments in (["--help"], ["inpaint", "--help"], ["serve", "--help"], ["doctor", "--help"]):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert out.startswith("usage: edgefill")
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("edgefill ")


def test_a_bar_is_drawn_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = run(capsys, "inpaint", *files, "--output", "o.png", "--json")
    assert code == 0
    assert json.loads(out)
    assert "denoising" in err or "loading" in err


def test_a_real_process_ends_without_a_traceback(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "service.cli", "inpaint", "--demo", "--image", "no.png",
               "--mask", "no.png"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: cannot read no.png: no such file or directory\n"


WITH_STUB = """
import sys, engine
from tests.service.stub_engine import StubEngine
engine.Engine = StubEngine
from service.cli import main
sys.exit(main(sys.argv[1:]))
"""
INPAINT = ("inpaint", "--demo", "--json")
DOCTOR = ("doctor",)


def end_of(arguments: tuple[str, ...], redirection: str, folder: Path) -> tuple[int, str]:
    """The exit code and stderr of a process whose output a shell sends elsewhere."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", WITH_STUB, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [INPAINT, DOCTOR])
def test_output_that_cannot_be_written(arguments: tuple[str, ...], tmp_path: Path) -> None:
    if Path("/dev/full").exists():
        code, err = end_of(arguments, ">/dev/full", tmp_path)
        assert (code, err) == (
            1,
            "error: cannot write to standard output: no space left on device\n",
        )
    code, err = end_of(arguments, ">&-", tmp_path)
    assert code == 1
    assert err == "error: standard output is closed, and the result could not be printed\n"


def test_closed_output_is_seen_before_the_work(tmp_path: Path) -> None:
    end_of(INPAINT, ">&-", tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_errors_that_cannot_be_written(redirection: str, tmp_path: Path) -> None:
    assert end_of(INPAINT, redirection, tmp_path)[0] == 0
    assert end_of((*INPAINT, "--steps", "0"), redirection, tmp_path)[0] == 2


@pytest.mark.parametrize("arguments", [INPAINT, DOCTOR])
def test_a_reader_that_has_gone(arguments: tuple[str, ...], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        process = subprocess.run(
            [sys.executable, "-c", WITH_STUB, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    assert (process.returncode, process.stderr) == (141, "")


def test_a_pipe_of_ours_that_breaks_is_no_reader_gone(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(StubEngine, "submit", broken)
    with pytest.raises(BrokenPipeError):
        main(["inpaint", *files, "--output", "o.png"])
