"""The comparison runs, on tiny shapes and with what is installed here; no figure is judged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bench import compare, tables
from bench.cores import physical_cores
from bench.peers.catalogue import PEERS
from bench.rows import Turn, psnr_db, rows
from bench.scenes import disc, pictures, scenes
from bench.tegrastats import Sampler
from engine.engine import DEFAULT_BUNDLE
from service.cli import main

PLAN = compare.Plan(
    checkpoint=DEFAULT_BUNDLE,
    bundle=DEFAULT_BUNDLE,
    peers=("diffusers", "edgefill"),
    environments=Path("nowhere"),
    in_place=True,
    size=64,
    steps=2,
    scheduler="lcm",
    guidance=1.0,
    rounds=3,
    seed=7,
    threads=1,
)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edgefill under diffusers' name too, so that a whole comparison runs without torch."""
    ours = PEERS["edgefill"]
    monkeypatch.setitem(PEERS, "diffusers", dataclasses.replace(ours, name="diffusers"))
    broken = dataclasses.replace(ours, name="optimum", options={})
    monkeypatch.setitem(PEERS, "optimum", broken)


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("holding", ["all", "one"])
def test_rounds_ratios_and_a_peer_that_fails(holding: Any) -> None:
    told: list[str] = []
    peers = ("diffusers", "optimum", "edgefill")
    plan = dataclasses.replace(PLAN, peers=peers, holding=holding)
    found = compare.measure(plan, told.append)
    first, failed, second = found["rows"]
    assert failed["error"] == "KeyError: 'reference'"
    assert "seconds" not in failed
    for row in (first, second):
        assert row["error"] is None
        assert len(row["seconds"]) == len(row["ratios"]) == 3
        assert len(row["load_s"]) == len(row["warm_up_s"]) == (1 if holding == "all" else 3)
        assert row["quality"] == {"psnr_db": None, "identical": True}
        assert row["energy_j"] is None
        assert row["energy_reason"] == "no tegrastats on this machine"
    assert first["ratio"] == 1
    expected = [a / b for a, b in zip(first["seconds"], second["seconds"], strict=True)]
    assert second["ratios"] == pytest.approx(expected, rel=0.05)
    assert [text.split(": ")[1] for text in told if text.startswith("round")] == [
        *("diffusers", "edgefill"),
        *("edgefill", "diffusers"),
        *("edgefill", "diffusers"),
    ]
    assert found["task"]["models_open"] == ("all" if holding == "all" else "one at a time")
    assert "KeyError" in tables.table({"kind": "compare", "conditions": conditions()} | found)


@pytest.mark.usefixtures("twins")
def test_an_edit_at_smaller_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("edgefill-384", "edgefill-320"):
        assert PEERS[name].options["working_size"] == int(name.split("-")[1])
    small = dataclasses.replace(PEERS["edgefill-320"], options={"reference": False})
    small.options["working_size"] = 64  # type: ignore[index]
    monkeypatch.setitem(PEERS, small.name, small)
    peers = ("diffusers", "edgefill-region", "edgefill-320")
    plan = dataclasses.replace(PLAN, peers=peers, interactive=True, size=128, rounds=1)
    found = compare.measure(plan, lambda text: None)
    theirs, usual, ours = found["rows"]
    assert [row["error"] for row in found["rows"]] == [None] * 3
    assert theirs["in_the_hole"]["equal"] == 1
    for row in (usual, ours):
        assert row["quality"] is None
        assert 0 < row["in_the_hole"]["psnr_db"] < 60
    assert ours["in_the_hole"] != usual["in_the_hole"]
    table = tables.table({"kind": "interactive", "conditions": conditions()} | found)
    apart = ours["in_the_hole"]
    words = f"other noise; in the hole {apart['psnr_db']:.1f} dB, SSIM {apart['ssim']:.2f}"
    assert words in table


def test_the_order_moves_on_by_one() -> None:
    assert [compare.rotated("abc", i) for i in range(4)] == [
        list("abc"),
        list("bca"),
        list("cab"),
        list("abc"),
    ]


def conditions() -> dict[str, Any]:
    from bench import report

    return report.conditions()


def test_no_picture_and_no_prompt_comes_twice(tmp_path: Path) -> None:
    made = scenes(dataclasses.replace(PLAN, rounds=9), tmp_path)
    assert len(made) == 10
    assert len({scene.prompt for scene in made}) == 10
    assert len({scene.seed for scene in made}) == 10
    assert len({np.load(scene.image).tobytes() for scene in made}) == 10


def test_an_edit_keeps_the_picture(tmp_path: Path) -> None:
    made = scenes(dataclasses.replace(PLAN, interactive=True, size=512), tmp_path)
    assert len({np.load(scene.image).tobytes() for scene in made}) == 1
    assert len({scene.prompt for scene in made}) == len(made)
    assert made[0].mask_share() == pytest.approx(0.13, abs=0.002)


def test_a_picture_of_ones_own() -> None:
    image = np.full((100, 100, 3), 9, np.uint8)
    photo, mask = pictures(dataclasses.replace(PLAN, image=image, mask=disc(100, 0.5)))
    assert photo.shape == (64, 64, 3)
    assert set(photo.ravel()) == {9}
    assert set(mask.ravel()) == {0, 255}


def test_quality_is_the_worst_round_and_only_of_the_same_noise() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)

    def turn(level: int) -> Turn:
        return Turn(begin=0, end=1, peak_mb=1, picture=flat, compared=flat + np.uint8(level))

    baseline = (PEERS["diffusers"], None, {}, {0: turn(0), 1: turn(0)})
    others = ("edgefill", "openvino", "sdcpp")
    found = [(PEERS[name], None, {}, {0: turn(1), 1: turn(2)}) for name in others]
    with Sampler() as energy:
        _, ours, own_noise, never = rows([baseline, *found], energy=energy)
    assert ours["quality"] == {"psnr_db": psnr_db(flat, flat + np.uint8(2)), "identical": False}
    assert own_noise["quality"]["psnr_db"] == psnr_db(flat, flat + np.uint8(1)) == 48.1
    assert never["quality"] is None


def test_physical_cores() -> None:
    assert 1 <= physical_cores() <= physical_cores("")
    two = "processor: 0\nphysical id: 0\ncore id: 0\n\nprocessor: 1\nphysical id: 0\ncore id: 0\n"
    assert physical_cores(two) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", "diffusers,dalle"], "--peers has 'dalle'; allowed: diffusers, edgefill, "),
        (["--peers", "edgefill"], "--peers is edgefill; must name diffusers and nobody twice"),
        (["--peers", "diffusers,diffusers"], "must name diffusers and nobody twice"),
        (["--size", "100"], "--size is 100; must be a multiple of 8 from 64 to 1024"),
        (["--steps", "0"], "--steps is 0; must be at least 1"),
        (["--threads", "0"], "--threads is 0; must be at least 1"),
        (["--scheduler", "best"], "--scheduler is best; allowed: ddim, "),
        (["--guidance", "nan"], "--guidance is nan; must be from 0 to 50"),
        (["--mask", "m.png"], "--image and --mask are given together or not at all"),
        (["--bundle", "nowhere"], "--bundle is nowhere, which has no bundle.json"),
    ],
)
def test_wrong_usage(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert main(["bench", "compare", "--checkpoint", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.export
def test_against_diffusers_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.export.checkpoints import make_checkpoint

    file, image, mask = (tmp_path / name for name in ("found.json", "image.png", "mask.png"))
    rng = np.random.default_rng(0)
    cv2.imwrite(str(image), rng.integers(0, 256, (64, 64, 3), np.uint8))
    cv2.imwrite(str(mask), disc(64, 0.3))
    common = ["--checkpoint", str(make_checkpoint(tmp_path / "checkpoint")), "--in-place"]
    common += ["--environments", str(tmp_path / "environments"), "--size", "64", "--rounds", "1"]
    common += ["--threads", "1"]
    pictures_of_ours = ["--image", str(image), "--mask", str(mask)]
    peers = ["--peers", "diffusers,edgefill,sdcpp"]
    arguments = [*common, *pictures_of_ours, *peers, "--json", str(file)]
    assert main(["bench", "compare", *arguments]) == 0
    found = json.loads(file.read_text())
    theirs, ours, absent = found["rows"]
    assert theirs["error"] is ours["error"] is None
    assert ours["quality"]["identical"] or ours["quality"]["psnr_db"] >= 50
    assert "stable_diffusion_cpp" in absent["error"]
    assert theirs["contrast"] > 5
    assert capsys.readouterr().out.strip() == tables.table(found)
    assert list((tmp_path / "environments" / "models").glob("*/edgefill/bundle.json"))
