"""A bundle that was tampered with is refused with one clear sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Bundle, BundleError, Engine
from engine.bundle import FORMAT_VERSION
from tests.engine.tiny import SAFETY, make_bundle


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that may be damaged."""
    return Path(shutil.copytree(bundle_path, tmp_path / "bundle"))


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "unet.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "unet.onnx").write_bytes(data)


def truncate(folder: Path) -> None:
    os.truncate(folder / "unet.onnx", 100)


def link(folder: Path) -> None:
    (folder / "unet.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "unet.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def link_manifest(folder: Path) -> None:
    (folder / "bundle.json").rename(folder.parent / "elsewhere.json")
    (folder / "bundle.json").symlink_to(folder.parent / "elsewhere.json")


def wrong_graph_shape(folder: Path) -> None:
    """Files and declaration fit each other, the graph inside does not."""
    other = make_bundle(folder.parent / "other", unet_channels=4)
    shutil.copy(other / "unet.onnx", folder / "unet.onnx")
    record = json.loads((other / "bundle.json").read_text())["components"]["unet"]["model"]
    edit(folder, lambda m: m["components"]["unet"].update(model=record))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit flip": (flip_a_bit, r"unet\.onnx: was changed: its SHA-256 is"),
    "truncated": (truncate, r"unet\.onnx: has 100 bytes, bundle\.json says \d+"),
    "missing": (lambda f: (f / "unet.onnx").unlink(), r"unet\.onnx: is missing"),
    "extra": (lambda f: (f / "notes.txt").write_text("?"), r"notes\.txt is not listed"),
    "extra folder": (lambda f: (f / "sub").mkdir(), r"sub is not listed"),
    "symlink": (link, r"unet\.onnx: is a symbolic link"),
    "symlinked manifest": (link_manifest, r"has no bundle\.json"),
    "no manifest": (lambda f: (f / "bundle.json").unlink(), r"has no bundle\.json"),
    "not JSON": (lambda f: (f / "bundle.json").write_text("{"), r"is not valid JSON"),
    "not an object": (lambda f: (f / "bundle.json").write_text("[]"), r"expected an object"),
    "deep manifest": (lambda f: (f / "bundle.json").write_text("[" * 9**5), r"is not valid JSON"),
    "huge manifest": (
        lambda f: (f / "bundle.json").write_text(" " * (1 << 20) + "{}"),
        r"is larger than 1048576 bytes",
    ),
}
EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "out of folder": (
        lambda m: m["components"]["unet"]["model"].update(file="../unet.onnx"),
        r"'\.\./unet\.onnx' is not a plain file name",
    ),
    "absolute path": (
        lambda m: m["tokenizer"].update(file="/etc/passwd"),
        r"'/etc/passwd' is not a plain file name",
    ),
    "listed twice": (
        lambda m: m["tokenizer"].update(m["components"]["unet"]["model"]),
        r"lists the same file twice",
    ),
    "version": (
        lambda m: m.update(format_version=FORMAT_VERSION + 1),
        rf"format_version is {FORMAT_VERSION + 1}; this Edgefill reads {FORMAT_VERSION}",
    ),
    "shape": (
        lambda m: m["components"]["unet"]["inputs"][0].update(shape=["batch", 7, 8, 8]),
        r"unet has tensors .* expected .*'sample'",
    ),
    "axis": (
        lambda m: m["components"]["unet"]["inputs"][0].update(shape=["rows", 9, 8, 8]),
        r"axis 'rows' is unknown",
    ),
    "negative axis": (
        lambda m: m["components"]["unet"]["inputs"][0].update(shape=["batch", -9, 8, 8]),
        r"axis -9 is unknown",
    ),
    "dtype": (
        lambda m: m["components"]["unet"]["inputs"][0].update(dtype="float8"),
        r"dtype is 'float8'; allowed: float32",
    ),
    "unfit dtype": (
        lambda m: m["components"]["unet"]["inputs"][1].update(dtype="int64"),
        r"unet: timestep is int64; expected float32",
    ),
    "size": (lambda m: m["defaults"].update(size=100), r"size is 100; it must be a multiple of 8"),
    "sizes": (
        lambda m: m["defaults"].update(size=128, max_size=64),
        r"max_size is 64; at least size",
    ),
    "embedding width": (
        lambda m: m["components"]["text_encoder"]["outputs"][0].update(shape=["batch", 8, 17]),
        r"unet has tensors",
    ),
    "family": (lambda m: m.update(family="flux"), r"family is 'flux'; allowed: sd1, sd2, sdxl"),
    "missing entry": (lambda m: m.pop("latents"), r"latents is missing"),
    "missing network": (
        lambda m: m["components"].pop("unet"),
        r"components missing: \['unet'\]",
    ),
    "unknown entry": (lambda m: m.update(surprise=1), r"unknown entries \['surprise'\]"),
    "wrong type": (
        lambda m: m["defaults"].update(size="512"),
        r"size is '512'; expected int",
    ),
    "boolean for a number": (
        lambda m: m["defaults"].update(size=True),
        r"size is True; expected int",
    ),
    "not a number": (
        lambda m: m["latents"].update(scaling_factor=float("nan")),
        r"scaling_factor is nan; allowed",
    ),
    "no steps": (
        lambda m: m["defaults"].update(num_inference_steps=0),
        r"num_inference_steps is 0; allowed: 1 to 1000",
    ),
    "preview map of no numbers": (
        lambda m: m["latents"].update(rgb_factors=[[0, 0, float("nan")]] * 5),
        r"rgb_factors must be 5 rows of 3 numbers",
    ),
    "preview map": (
        lambda m: m["latents"].update(rgb_factors=[[1, 2]]),
        r"rgb_factors must be 5 rows of 3 numbers",
    ),
}


SAFETY_EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "no word about it": (lambda m: m.pop("safety"), r"unknown: \['safety_checker'\]"),
    "no network": (
        lambda m: m["components"].pop("safety_checker"),
        r"components missing: \['safety_checker'\]",
    ),
    "a threshold too few": (
        lambda m: m["safety"]["concepts"].pop(),
        r"safety_checker has tensors .*cosines.* expected .*'batch', 2",
    ),
    "no concepts": (lambda m: m["safety"].update(concepts=[]), r"concepts is \[\]; at least one"),
    "a threshold of no number": (
        lambda m: m["safety"].update(special_care=[float("nan")]),
        r"special_care is \[nan\]; expected numbers",
    ),
    "two channels": (lambda m: m["safety"].update(mean=[0, 0]), r"mean is .*; expected 3 numbers"),
    "nothing to divide by": (
        lambda m: m["safety"].update(std=[1, 1, 0]),
        r"std is \[1.0, 1.0, 0.0",
    ),
    "crop": (lambda m: m["safety"].update(crop=17), r"crop is 17; allowed: 1 to 16"),
    "side": (lambda m: m["safety"].update(crop=8), r"safety_checker has tensors .*16, 16.* 8, 8"),
    "unknown entry": (lambda m: m["safety"].update(x=1), r"safety: unknown entries \['x'\]"),
}


@pytest.mark.parametrize("name", SAFETY_EDITS)
def test_an_edited_safety_checker_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_bundle(tmp_path / "own", safety=SAFETY)
    change, message = SAFETY_EDITS[name]
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


def test_a_good_bundle_opens(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    assert bundle.family == "sd1"
    assert bundle.unet_channels == 9
    assert {record.file for record in bundle.files()} == {
        "LICENSE",
        "text_encoder.onnx",
        "tokenizer.json",
        "unet.onnx",
        "vae_decoder.onnx",
        "vae_encoder.onnx",
    }


def test_writing_what_was_read_gives_the_same_bytes(copy: Path) -> None:
    before = (copy / "bundle.json").read_bytes()
    Bundle.open(copy).write()
    assert (copy / "bundle.json").read_bytes() == before


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_is_refused(copy: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_is_refused(copy: Path, name: str) -> None:
    change, message = EDITS[name]
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_a_graph_that_is_not_what_the_bundle_declares_is_refused(copy: Path) -> None:
    wrong_graph_shape(copy)
    with pytest.raises(BundleError, match=r"input sample is .*; the bundle declares"):
        Engine.open(copy)


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a directory"):
        Bundle.open(tmp_path / "nothing")


def test_an_unknown_default_scheduler_is_refused(copy: Path) -> None:
    edit(copy, lambda m: m["defaults"].update(scheduler="magic"))
    with pytest.raises(BundleError, match="magic"):
        Engine.open(copy)


def test_an_unsupported_scheduler_setting_is_refused(copy: Path) -> None:
    edit(copy, lambda m: m["scheduler"].update(thresholding=True))
    with pytest.raises(BundleError, match=r"thresholding is True; supported: False"):
        Engine.open(copy)


def test_a_tokenizer_of_another_length_is_refused(copy: Path) -> None:
    text = json.loads((copy / "tokenizer.json").read_text())
    text["padding"]["strategy"] = {"Fixed": 9}
    text["truncation"]["max_length"] = 9
    (copy / "tokenizer.json").write_text(json.dumps(text))
    record = {"sha256": "", "size": 0}
    edit(copy, lambda m: m["tokenizer"].update(record))
    with pytest.raises(BundleError, match="bytes"):
        Bundle.open(copy)
