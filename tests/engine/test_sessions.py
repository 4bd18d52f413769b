"""The door where tensors are checked, the ONNX Runtime session, and what a device must prove."""

from __future__ import annotations

import builtins
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Bundle, Engine, RuntimeUnavailable, SessionError, TensorMismatch
from engine.sessions import devices
from engine.sessions.base import bind_axes, shape_of
from engine.sessions.devices import Device, open_session, report, select
from tests.engine.tiny import TOKENS, WIDTH

Feeds = dict[str, npt.NDArray[Any]]


def feeds(batch: int = 2, h: int = 8, w: int = 12) -> Feeds:
    return {
        "sample": np.zeros((batch, 9, h, w), np.float32),
        "timestep": np.zeros(batch, np.float32),
        "encoder_hidden_states": np.zeros((batch, TOKENS, WIDTH), np.float32),
    }


def test_axes_are_bound_by_what_comes_in(bundle_path: Path) -> None:
    unet = Bundle.open(bundle_path).components["unet"]
    axes = bind_axes(unet.inputs, feeds())
    assert axes["batch"] == 2
    assert (axes["height/8"], axes["width/8"]) == (8, 12)
    assert (axes["height"], axes["width"]) == (64, 96)
    assert shape_of(unet.outputs[0], axes) == (2, 4, 8, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": np.zeros((2, 4, 8, 12), np.float32)}, r"sample has shape \(2, 4, 8, 12\)"),
        ({"sample": np.zeros((2, 9, 8), np.float32)}, r"sample has shape \(2, 9, 8\)"),
        ({"sample": np.zeros((2, 9, 8, 12))}, "sample is float64; it must be float32"),
        ({"timestep": np.zeros(3, np.float32)}, r"timestep has shape \(3,\)"),
        ({"timestep": None}, "timestep is missing"),
        ({"surprise": np.zeros(1)}, r"inputs \['surprise'\] are not known"),
        (
            {"sample": np.zeros((2, 9, 12, 8), np.float32).transpose(0, 1, 3, 2)},
            "sample is not contiguous",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    bundle_path: Path, change: dict[str, Any], message: str
) -> None:
    unet = Bundle.open(bundle_path).components["unet"]
    given = {name: array for name, array in (feeds() | change).items() if array is not None}
    with pytest.raises(TensorMismatch, match=message):
        bind_axes(unet.inputs, given)


def test_pixels_must_be_a_multiple_of_eight(bundle_path: Path) -> None:
    encoder = Bundle.open(bundle_path).components["vae_encoder"]
    with pytest.raises(TensorMismatch, match="height is 60; it must be a multiple of 8"):
        bind_axes(encoder.inputs, {"image": np.zeros((1, 3, 60, 64), np.float32)})


def test_buffers_are_reused_and_right(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    session = open_session(select("cpu"), bundle.path, bundle.components["unet"], threads=1)
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(a.shape).astype(np.float32) for name, a in feeds().items()}
    (first,) = session.run(given)
    kept = first.copy()
    (second,) = session.run(given)
    assert second is first
    assert np.array_equal(second, kept)
    for size in range(4, 20):  # more shapes than are kept
        session.run(feeds(h=size))
    (again,) = session.run(given)
    assert np.array_equal(again, kept)
    session.close()


def test_a_damaged_graph(tmp_path: Path, bundle_path: Path) -> None:
    component = Bundle.open(bundle_path).components["unet"]
    (tmp_path / "unet.onnx").write_bytes(b"no graph")
    with pytest.raises(SessionError, match=r"unet\.onnx: ONNX Runtime cannot open it"):
        open_session(Device(name="cpu", detail=""), tmp_path, component)


def test_auto_says_what_it_chose() -> None:
    assert select("auto").name == "cpu"
    assert "onnxruntime" in select("auto").detail
    assert [finding.ok for finding in report()] == [True]


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "gpu", ""])
def test_an_unknown_device_is_refused(bundle_path: Path, name: str) -> None:
    with pytest.raises(RuntimeUnavailable, match="is not supported; allowed: auto, cpu"):
        Engine.open(bundle_path, device=name)


def test_without_a_runtime_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match=r"edgefill\[cpu\].*edgefill\[gpu\]"):
        select("auto")
    (finding,) = report()
    assert not finding.ok
    assert "edgefill[cpu]" in finding.hint


def test_a_runtime_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "engine.sessions" and args[2] and "ort" in args[2]:
            raise ImportError("libsomething.so.9: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(RuntimeUnavailable, match="cannot be loaded: libsomething"):
        devices.select("cpu")


def test_the_engine_is_imported_without_any_runtime() -> None:
    code = "import engine, sys; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
