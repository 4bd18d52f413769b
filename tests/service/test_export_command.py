"""``edgefill export``: arguments, what it prints, and its errors; the exporter itself is a stub."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.manifest import FileRecord, Parity
from service.cli import main


class ExportError(Exception):
    """Stands for the exporter's."""


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A module in place of ``export``; ``raises`` is raised, ``call`` is what it was given."""
    state: dict[str, Any] = {"raises": None}

    def export_checkpoint(source: str, output: Path, **options: Any) -> object:
        state["call"] = (source, output, options)
        progress: Callable[[str, int, int], None] = options["progress"]
        progress("unet", 1, 4)
        if state["raises"] is not None:
            raise state["raises"]
        parity = Parity(psnr_db=99.5, max_abs_error=1e-5)
        components = {"unet": types.SimpleNamespace(parity=parity)}
        files = [FileRecord(file="unet.onnx", size=2_500_000, sha256="")]
        return types.SimpleNamespace(
            family="sd1",
            target="cpu",
            precision="fp32",
            components=components,
            files=lambda: iter(files),
        )

    module = types.ModuleType("export")
    module.ExportError = ExportError  # type: ignore[attr-defined]
    module.export_checkpoint = export_checkpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "export", module)
    return state


def test_export(exporter: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "some/model", "--output", "out"]) == 0
    source, output, options = exporter["call"]
    assert (source, output) == ("some/model", Path("out"))
    del options["progress"]
    assert options == {
        "target": "cpu",
        "precision": "fp32",
        "overwrite": False,
        "revision": None,
        "safety_checker": True,
        "fast_vae": None,
        "deep_cache": None,
        "clip_skip": None,
        "clip_tokenizer": None,
        "prediction_type": None,
        "vae": None,
        "loras": [],
        "scheduler": None,
        "num_inference_steps": None,
        "guidance_scale": None,
    }
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"bundle: {Path('out').absolute()}",
        "kind: sd1, cpu, fp32, 2.5 MB",
        "parity of unet: 99.5 dB, at most 1e-05 off",
    ]


def test_options_and_json(exporter: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--target", "cpu", "--precision", "fp32", "--revision", "abc", "--overwrite"]
    wanted += ["--no-safety-checker", "--tokenizer", "t", "--prediction-type", "v_prediction"]
    wanted += ["--scheduler", "lcm", "--steps", "4", "--guidance", "1"]
    wanted += ["--lora", "a.safetensors", "--lora", "C:b:-0.5", "--lora", "C:c"]
    assert main(["export", "m", "--output", "out", *wanted, "--json"]) == 0
    options = exporter["call"][2]
    assert (options["target"], options["precision"]) == ("cpu", "fp32")
    assert (options["revision"], options["overwrite"]) == ("abc", True)
    assert options["safety_checker"] is False
    assert options["clip_tokenizer"] == Path("t")
    assert options["prediction_type"] == "v_prediction"
    assert options["loras"] == [
        (Path("a.safetensors"), 1.0),
        (Path("C:b"), -0.5),
        (Path("C:c"), 1.0),
    ]
    assert (options["scheduler"], options["num_inference_steps"]) == ("lcm", 4)
    assert options["guidance_scale"] == 1.0
    record = json.loads(capsys.readouterr().out)
    assert record["bytes"] == 2_500_000
    assert record["parity"] == {"unet": {"psnr_db": 99.5, "max_abs_error": 1e-5}}


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ExportError("m: is a FluxPipeline"), ["error: m: is a FluxPipeline"]),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            [
                "error: export needs torch, which is not installed",
                "hint: pip install 'edgefill[export]'",
            ],
        ),
        (
            ModuleNotFoundError("No module named 'optimum.x'", name="optimum.x"),
            [
                "error: export needs optimum, which is not installed",
                "hint: pip install 'edgefill[export]'",
            ],
        ),
        (
            PermissionError(13, "Permission denied"),
            ["error: cannot export to out: permission denied"],
        ),
    ],
)
def test_errors(
    exporter: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    lines: list[str],
) -> None:
    exporter["raises"] = error
    assert main(["export", "m", "--output", "out"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", lines)


def test_a_module_of_ours_that_is_missing_is_a_defect(exporter: dict[str, Any]) -> None:
    exporter["raises"] = ModuleNotFoundError("No module named 'export.x'", name="export.x")
    with pytest.raises(ModuleNotFoundError):
        main(["export", "m", "--output", "out"])


def test_usage(exporter: dict[str, Any]) -> None:
    assert main(["export"]) == 2
    assert main(["export", "m"]) == 2
    assert main(["export", "m", "--output", "out", "--target", "abacus"]) == 2
