"""Stages and memory of a picture, cold and warm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu, latency
from bench.probe import Probe
from bench.sampling import fresh, sample
from engine import Engine, EngineError
from service.cli import main
from tests.engine.tiny_savings import make_savings_bundle


def test_networks_beyond_the_usual_are_watched(tmp_path: Path) -> None:
    bundle = make_savings_bundle(tmp_path / "bundle")
    asked = ["bench", "latency", "--repetitions", "2", "--cold", "0", "--bundle", str(bundle)]
    asked += ["--request", "vae=fast,deep_cache_interval=2,num_inference_steps=4"]
    assert main([*asked, "--json", str(tmp_path / "latency.json")]) == 0
    found = json.loads((tmp_path / "latency.json").read_text())
    assert {"unet_shallow", "vae_decoder_fast"} <= set(found["stages"])
    assert found["networks"]["unet_shallow"]["runs"] == 2 * 2


def test_latency(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    asked = ["bench", "latency", "--repetitions", "2", "--cold", "1", "--json", str(file)]
    asked += ["--request", "num_inference_steps=3,scheduler=euler"]
    assert main(asked) == 0
    found = json.loads(file.read_text())
    assert found["stages"]["total_arrays"]["count"] == 2
    assert (found["made_by"]["steps_run"], found["made_by"]["scheduler"]) == (3, "euler")
    assert found["conditions"]["cores"] >= 1
    assert found["cold"]["median_ms"]["process"] > found["cold"]["median_ms"]["open"] > 0
    assert found["cold"]["memory"]["peak_mb"] > 10
    assert found["networks"]["unet"]["share_of_limit"] > 0
    assert found["networks"]["unet"]["runs"] == 2 * found["made_by"]["steps_run"]
    assert "uncounted" not in found["networks"]["unet"]
    assert "unet: count 2, median ms" in capsys.readouterr().out


def test_stages_add_up(bundle_path: Path) -> None:
    with Engine.open(bundle_path, threads=1) as engine:
        probe = Probe(engine)
        sample(engine, probe, 0)
        made = sample(engine, probe, 1)
    stages = made.stages
    assert all(run.seconds > 0 for run in made.runs)
    networks = sum(run.seconds for run in made.runs)
    names = [run.network for run in made.runs]
    assert names.count("unet") == made.result.steps_run
    assert {"text_encoder", "vae_encoder", "vae_decoder"} < set(names)
    inside = ("text_encoder", "vae_encoder", "unet", "vae_decoder")
    assert sum(stages[name] for name in inside) == pytest.approx(networks)
    assert stages["outside_networks_arrays"] == pytest.approx(stages["total_arrays"] - networks)
    assert 0 < stages["outside_networks_arrays"] < stages["outside_networks_png"]
    assert stages["prepare"] + stages["paste"] < stages["outside_networks_arrays"]
    steps = [run.seconds for run in made.runs if run.network == "unet"]
    assert [stages[f"unet_step_{n}"] for n in range(1, len(steps) + 1)] == steps


def test_the_probe_leaves_the_picture_as_it_is(bundle_path: Path) -> None:
    with Engine.open(bundle_path, threads=1) as engine:
        watched = sample(engine, Probe(engine), 3).result
    with Engine.open(bundle_path, threads=1) as engine:
        probe = Probe(engine)
        again = sample(engine, probe, 3).result
        assert probe.taken() == []
    assert (watched.images == again.images).all()


def test_every_picture_is_another() -> None:
    seen = {fresh(i).tobytes() for i in range(600)}
    assert len(seen) == 600


def test_a_first_picture_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ended with 1: .*bundle\.json"):
        latency.first_picture(tmp_path, "cpu")


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.gpu_memory() == {"mb": None, "reason": "there is no nvidia-smi"}
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '77, 512'\necho '8, 100'\necho '77, 488'\n")
    tool.chmod(0o755)
    assert gpu.gpu_memory(77) == {"mb": 1048.6}
    assert gpu.gpu_memory(1)["reason"] == "this process holds no memory of a GPU"
    tool.write_text("#!/bin/sh\necho '77, [N/A]'\n")
    assert gpu.gpu_memory(77) == {"mb": None, "reason": "nvidia-smi says [N/A]"}
    tool.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert gpu.gpu_memory(77) == {"mb": None, "reason": "nvidia-smi: no driver"}
