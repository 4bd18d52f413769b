"""A peer that does not do what it is asked says why, and real hosts answer as written."""

from __future__ import annotations

import dataclasses
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bench.peers import environments
from bench.peers.catalogue import BASELINE, FULL, INTERACTIVE, PEERS, Peer
from bench.peers.environments import NotInstalledError, fingerprint, provide
from bench.peers.job import Job
from bench.peers.process import PeerError, PeerProcess, command_for
from engine.engine import DEFAULT_BUNDLE

JOB = Job(
    checkpoint="nowhere",
    model=str(DEFAULT_BUNDLE),
    width=64,
    height=64,
    steps=2,
    scheduler="lcm",
    scheduler_class="LCMScheduler",
    guidance=1.0,
    threads=1,
    options={"reference": True},
)
SAY = "import sys; sys.stdin.readline(); print({!r}, flush=True); sys.stdin.readline()"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import sys; sys.exit('no such library')",
            r"ended during load \(exit code 1; no such lib",
        ),
        ("import os; os.kill(os.getpid(), 9)", r"ended during load \(signal 9; it said nothing\)"),
        (
            SAY.format("Loading: 100%"),
            "answered load with 'Loading: 100%', which is no JSON object",
        ),
        (SAY.format("[1]"), r"answered load with '\[1\]', which is no JSON object"),
        (SAY.format('{"error": "OutOfMemory: 4 GB"}'), "^OutOfMemory: 4 GB$"),
        ("import time; time.sleep(60)", r"gave no answer to load within 0\.3 s"),
    ],
)
def test_what_a_peer_can_do_wrong(code: str, words: str, tmp_path: Path) -> None:
    timeout = 0.3 if "sleep" in code else 30
    with (
        PeerProcess([sys.executable, "-c", code], log=tmp_path / "log") as process,
        pytest.raises(PeerError, match=words),
    ):
        process.ask("load", timeout=timeout)


def test_last_words_are_those_of_this_process(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("words of another\n")
    code = "raise SystemExit(3)"
    with (
        PeerProcess([sys.executable, "-c", code], log=tmp_path / "log") as process,
        pytest.raises(PeerError, match=r"exit code 3; it said nothing"),
    ):
        process.ask("load", timeout=30)


def test_a_host_paints_and_says_how_long_and_how_much(tmp_path: Path) -> None:
    for name, shape in (("image", (64, 64, 3)), ("mask", (64, 64))):
        np.save(tmp_path / f"{name}.npy", np.full(shape, 255, np.uint8))
    item = {name: str(tmp_path / f"{name}.npy") for name in ("image", "mask")}
    item |= {"prompt": "a red apple", "seed": 1}
    output = tmp_path / "made.npy"
    command = command_for(Path(sys.executable), "edgefill", beside_us=True)
    with PeerProcess(command, log=tmp_path / "log") as process:
        with pytest.raises(PeerError, match="nothing is loaded"):
            process.ask("paint", timeout=60, item=item, output=None)
        loaded = process.ask("load", timeout=60, job=dataclasses.asdict(JOB))
        done = process.ask("paint", timeout=60, item=item, output=str(output))
        peak = process.ask("memory", timeout=60)["peak_mb"]
        with pytest.raises(PeerError, match="cannot 'dance'"):
            process.ask("dance", timeout=60)
    assert loaded["seconds"] > 0
    assert loaded["versions"]["onnxruntime"]
    assert done["end"] > done["begin"]
    assert 20 < peak < 2000
    assert np.load(output).shape == (64, 64, 3)


def test_a_host_sees_nothing_of_ours_but_the_bench(tmp_path: Path) -> None:
    packages = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (packages / name).is_dir():
            (tmp_path / name).symlink_to(packages / name)
    command = command_for(Path(sys.executable), "edgefill", beside_us=False)
    alone = [command[0], "-S", *command[1:], str(tmp_path)]
    with (
        PeerProcess(alone, log=tmp_path / "log") as process,
        pytest.raises(PeerError, match="No module named 'engine'"),
    ):
        process.ask("load", timeout=60, job=dataclasses.asdict(JOB))


def wheel(folder: Path) -> Path:
    """A wheel of one empty module."""
    path = folder / "tinypeer-1.0-py3-none-any.whl"
    info = "tinypeer-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tinypeer.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinypeer\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


def peer(*requirements: str) -> Peer:
    return Peer(name="p", title="P", module="p", environment="p", requirements=requirements)


def test_an_environment_is_made_once_with_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments.shutil, "which", lambda name: None)
    told: list[str] = []
    one = peer(str(wheel(tmp_path)))
    for _ in range(2):
        python = provide(one, tmp_path / "all", told.append)
    assert len(told) == 1
    assert list(python.parent.parent.rglob("site-packages/tinypeer.py"))
    missing = peer(str(tmp_path / "absent-1.0-py3-none-any.whl"))
    with pytest.raises(NotInstalledError, match=r"could not install it: .+"):
        provide(missing, tmp_path / "all", told.append)
    assert python != environments.folder_of(missing, tmp_path / "all") / "bin" / "python"


def test_half_an_environment_is_made_again(tmp_path: Path) -> None:
    if environments.shutil.which("uv") is None:
        pytest.skip("slow without uv")
    one = peer(str(wheel(tmp_path)))
    python = provide(one, tmp_path / "all", lambda text: None)
    (python.parent.parent / environments.MARK).unlink()
    left = python.parent.parent / "left"
    left.touch()
    assert provide(one, tmp_path / "all", lambda text: None) == python
    assert not left.exists()


def test_a_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    file = tmp_path / "unet" / "model.safetensors"
    file.write_bytes(b"1")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    file.write_bytes(b"22")
    assert fingerprint(tmp_path) != before


def test_the_catalogue_is_whole() -> None:
    assert {BASELINE, *FULL, *INTERACTIVE} == set(PEERS)
    for one in PEERS.values():
        assert (Path(environments.__file__).parent / f"{one.module}.py").is_file()
        assert (one.environment is None) == (one.requirements == ())
        assert all(text.count("==") == 1 for text in (*one.requirements, *one.bare))
        same = [p for p in PEERS.values() if p.environment == one.environment]
        assert len({(p.requirements, p.bare) for p in same}) == 1
