"""From the bundle back to the checkpoint: the same weights, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bundle import Bundle
from engine.engine import DEFAULT_BUNDLE

pytestmark = pytest.mark.export

NETWORKS = ("unet", "text_encoder", "vae")


def _weights(folder: Path, network: str) -> dict[str, Any]:
    from safetensors.numpy import load_file

    (path,) = (folder / network).glob("*.safetensors")
    return dict(load_file(path))


def test_the_model_that_ships_exports_to_itself(tmp_path: Path) -> None:
    from export.default_model.recover import recover
    from export.exporter import export_checkpoint

    shipped = Bundle.open(DEFAULT_BUNDLE)
    recover(shipped, tmp_path / "checkpoint")
    again = export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", size=128, max_size=128)
    recover(again, tmp_path / "again")
    assert again.latents.scaling_factor == shipped.latents.scaling_factor
    assert dict(again.scheduler) == dict(shipped.scheduler)
    for network in NETWORKS:
        first, second = (_weights(tmp_path / name, network) for name in ("checkpoint", "again"))
        assert first.keys() == second.keys()
        assert len(first) > 30
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name], err_msg=name)


def test_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.default_model import recover as module

    read = module._read

    def altered(bundle: Bundle, name: str) -> Any:
        weights = read(bundle, name)
        if name == "unet":
            weights["conv_out.bias"] = weights["conv_out.bias"] + 1
        return weights

    monkeypatch.setattr(module, "_read", altered)
    assert module.main([str(DEFAULT_BUNDLE), "--output", str(tmp_path / "checkpoint")]) == 1
    assert not (tmp_path / "checkpoint").exists()


def test_a_missing_weight_is_named() -> None:
    import torch

    from export.default_model.recover import RecoverError, _load

    with pytest.raises(RecoverError, match="'weight'"):
        _load(torch.nn.Linear(2, 2), {}, "unet")
