"""Ways to make the same pictures, side by side, and how far apart pictures are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench import variants
from bench.quality import difference, summary
from engine import Bundle, InpaintRequest
from engine.engine import DEFAULT_BUNDLE
from engine.job import draft
from service.cli import main
from tests.engine.tiny import make_bundle


def test_bundles_and_variants(bundle_path: Path, tmp_path: Path) -> None:
    other, file = make_bundle(tmp_path / "other", unet_channels=4), tmp_path / "parity.json"
    named = ["num_inference_steps=2", "num_inference_steps=4,guidance_scale=1", "strength=1.0"]
    bundles = [flag for path in (bundle_path, other) for flag in ("--bundle", str(path))]
    asked = [flag for name in named for flag in ("--variant", name)]
    command = ["bench", "parity", *bundles, *asked, "--repetitions", "1", "--json", str(file)]
    assert main(command) == 0
    found = json.loads(file.read_text())
    assert found["made_by"]["compared_with"] == "as asked"
    rows = found["variants"]
    assert list(rows) == ["as asked", str(other), *named]
    assert rows["strength=1.0"]["psnr_db"] is None
    assert rows["strength=1.0"]["equal"] == rows["strength=1.0"]["pictures"] == 3
    assert rows["strength=1.0"]["ssim"] == 1
    for name in (str(other), named[0], named[1]):
        assert 0 < rows[name]["psnr_db"] < 60
        assert rows[name]["max_abs"] > 0
        assert rows[name]["times_faster"] > 0


def test_fields_that_all_ways_share(bundle_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "parity.json"
    command = ["bench", "parity", "--bundle", str(bundle_path), "--repetitions", "1"]
    command += ["--shared", "num_inference_steps=3,guidance_scale=1", "--json", str(file)]
    assert main([*command, "--variant", "guidance_scale=1", "--variant", "guidance_scale=4"]) == 0
    rows = json.loads(file.read_text())["variants"]
    assert rows["guidance_scale=1"]["equal"] == 3
    assert rows["guidance_scale=4"]["psnr_db"] is not None


def test_every_variant_of_the_list_fits_the_bundle_that_ships() -> None:
    image, mask = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8)
    names = [variants.AS_ASKED.name, *(variant.name for variant in variants.VARIANTS)]
    assert len(set(names)) == len(names)
    bundle = Bundle.open(DEFAULT_BUNDLE)
    for variant in variants.VARIANTS:
        asked = InpaintRequest(image=image, mask=mask, prompt="", **dict(variant.request))
        assert draft(asked, bundle).schedule is not None


def test_a_variant_is_read() -> None:
    text = "guidance_scale=1, scheduler=euler,num_inference_steps=4,reference=true"
    assert variants.parse(text).request == {
        "guidance_scale": 1.0,
        "scheduler": "euler",
        "num_inference_steps": 4,
        "reference": True,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variant", "seed=1"], "error: --variant: 'seed=1' is not FIELD=VALUE; fields: "),
        (["--variant", "samples"], "error: --variant: 'samples' is not FIELD=VALUE; fields: "),
        (["--variant", "samples=x"], "error: --variant: samples is 'x'; must be a int"),
        (["--shared", "samples"], "error: --shared: 'samples' is not FIELD=VALUE; fields: "),
        (["--variant", "samples=9"], "error: samples: is 9; must be between 1 and 4"),
        (["--variant", "samples=2"] * 2, "error: samples=2 is given twice"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "parity", *arguments]) != 0
    assert words in capsys.readouterr().err


def test_differences_by_hand() -> None:
    one = np.full((32, 32, 3), 100, np.uint8)
    other, mask = one.copy(), np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    other[8:24, 8:16] += 2
    other[0, 0, 0] = 0  # outside the hole: seen by the largest difference alone
    apart = difference(one, other, mask)
    assert (apart.squares, apart.values, apart.largest) == (4 * 16 * 8 * 3, 16 * 16 * 3, 100)
    assert 0.9 < apart.ssim < 1
    found = summary([apart, difference(one, one, mask)])
    assert found["psnr_db"] == round(10 * math.log10(255**2 / 1), 2)
    assert (found["max_abs"], found["pictures"], found["equal"]) == (100, 2, 1)
    assert found["ssim_lowest"] == round(apart.ssim, 4) < found["ssim"]


def test_structural_similarity_by_hand() -> None:
    """One window by its definition: weights of a Gaussian, sigma 1.5, over 11x11."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (2, 11, 11), np.uint8)
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    x, y = grey.astype(float)
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy = (weights * x * x).sum() - mx**2, (weights * y * y).sum() - my**2
    cov = (weights * x * y).sum() - mx * my
    c1, c2 = 2.55**2, 7.65**2
    by_hand = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    mask = np.zeros((11, 11), np.uint8)
    mask[5, 5] = 255
    one, other = (np.repeat(plane[..., None], 3, 2) for plane in grey)
    assert difference(one, other, mask).ssim == pytest.approx(by_hand, abs=1e-9)
