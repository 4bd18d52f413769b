"""``edgefill doctor``: what it looks at, and what makes it fail."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from engine.bundle import Bundle
from engine.engine import DEFAULT_BUNDLE
from engine.errors import BundleError
from engine.sessions.devices import Finding
from service.cli import main
from service.commands import doctor as doctor_module

WORKS = Finding(name="cpu", ok=True, detail="ONNX Runtime 9.9 ran a kernel")


@pytest.fixture(autouse=True)
def _machine_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened:
        family, precision, safety = "sd1", "fp32", None

        def files(self) -> list[object]:
            return []

    monkeypatch.setattr("engine.sessions.devices.report", lambda: (WORKS,))
    monkeypatch.setattr("engine.bundle.Bundle.open", lambda path: Opened())


def checks(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]]]:
    code = main(["doctor", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] == (code == 0)
    return code, {check["name"]: check for check in record["checks"]}


def test_a_machine_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checks(capsys)
    assert code == 0
    assert found["devices"]["detail"] == "working: cpu"
    assert found["cpu"]["detail"] == WORKS.detail
    wanted = {"python", "numpy", "opencv-python", "export", "default bundle", "data directory"}
    assert wanted <= set(found)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok      cpu: ONNX Runtime 9.9 ran a kernel" in out
    assert out.endswith("Edgefill works on this machine.\n")


def test_no_device(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Finding(name="cpu", ok=False, detail="no runtime", hint="pip install 'edgefill[cpu]'")
    monkeypatch.setattr("engine.sessions.devices.report", lambda: (broken,))
    code, found = checks(capsys)
    assert code == 1
    assert not found["devices"]["ok"]
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "BROKEN  devices: no device works\n        hint: pip install 'edgefill[cpu]'" in out
    assert out.endswith("Edgefill does not work yet.\n")


def test_a_damaged_default_bundle(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(path: Path) -> None:
        raise BundleError("unet.onnx: was changed")

    monkeypatch.setattr("engine.bundle.Bundle.open", damaged)
    code, found = checks(capsys)
    assert code == 1
    assert found["default bundle"]["detail"] == "unet.onnx: was changed"
    assert found["default bundle"]["hint"]


def test_a_missing_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor_module.version_of
    monkeypatch.setattr(
        doctor_module, "version_of", lambda name: None if name in ("rich", "torch") else real(name)
    )
    code, found = checks(capsys)
    assert code == 1
    assert found["rich"] == {
        "name": "rich",
        "ok": False,
        "required": True,
        "detail": "is not installed",
        "hint": "pip install rich",
    }
    assert "torch" in str(found["export"]["detail"])
    assert not found["export"]["required"]


def test_settings_and_data_directory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("EDGEFILL_DATA_DIR", str(in_the_way / "data"))
    code, found = checks(capsys)
    assert code == 1
    assert not found["data directory"]["ok"]
    monkeypatch.setenv("EDGEFILL_DATA_DIR", str(tmp_path / "new" / "data"))
    monkeypatch.setenv("EDGEFILL_API_KEY", "misspelt")
    code, found = checks(capsys)
    assert code == 0
    assert not found["settings"]["ok"]
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("EDGEFILL_WAIT_SECONDS", "soon")
    assert checks(capsys)[0] == 1


def test_a_probe_that_breaks_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("libfoo.so is missing")

    monkeypatch.setattr("engine.sessions.devices.report", broken)
    code, found = checks(capsys)
    assert code == 1
    assert found["devices"]["detail"] == "RuntimeError: libfoo.so is missing"
    assert found["default bundle"]["ok"]


def test_the_configured_bundle_and_device_are_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("engine.sessions.devices._probe_cpu", lambda: "ONNX Runtime 9.9")
    assert not {"EDGEFILL_BUNDLE", "EDGEFILL_DEVICE"} & set(checks(capsys)[1])
    monkeypatch.setenv("EDGEFILL_BUNDLE", str(tmp_path))
    monkeypatch.setenv("EDGEFILL_DEVICE", "cpu")
    code, found = checks(capsys)
    assert code == 0
    assert found["EDGEFILL_BUNDLE"]["detail"] == f"{tmp_path} (verified: sd1, fp32)"
    assert found["EDGEFILL_DEVICE"]["detail"] == "cpu (ONNX Runtime 9.9 on the CPU)"


def test_a_configured_device_that_does_not_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFILL_DEVICE", "abacus")
    code, found = checks(capsys)
    assert code == 1
    assert "device 'abacus' is not supported" in str(found["EDGEFILL_DEVICE"]["detail"])
    assert "EDGEFILL_DEVICE" in str(found["EDGEFILL_DEVICE"]["hint"])


def test_a_configured_bundle_that_cannot_be_opened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = Bundle.open  # the one that works, of this file's machine

    def only_the_default(path: Path) -> object:
        if path != DEFAULT_BUNDLE:
            raise BundleError(f"{path}: is not a directory")
        return opened(path)

    monkeypatch.setattr("engine.bundle.Bundle.open", only_the_default)
    monkeypatch.setenv("EDGEFILL_BUNDLE", str(tmp_path / "no"))
    code, found = checks(capsys)
    assert code == 1
    assert found["EDGEFILL_BUNDLE"]["detail"] == f"{tmp_path / 'no'}: is not a directory"
    assert found["EDGEFILL_BUNDLE"]["hint"]
    assert found["default bundle"]["ok"]
    assert main(["doctor"]) == 1
    assert "BROKEN  EDGEFILL_BUNDLE: " in capsys.readouterr().out


def test_every_package_that_is_needed_is_looked_for() -> None:
    project = tomllib.loads(
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    needed = {re.split(r"[^A-Za-z0-9._-]", line)[0] for line in project["dependencies"]}
    assert set(doctor_module.PACKAGES) == needed
