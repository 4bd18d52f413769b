"""The training recipe of the default model: loss, pace, trainer, checkpoints, commands."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")
transformers = pytest.importorskip("transformers")

from export.default_model import train, vae  # noqa: E402
from export.default_model.checkpoint import load_state, save_state  # noqa: E402
from export.default_model.compose import Composer  # noqa: E402
from export.default_model.model import (  # noqa: E402
    build_scheduler,
    build_text_encoder,
    build_unet,
    load_weights,
)
from export.default_model.objective import add_noise, draw_timesteps, hole_loss  # noqa: E402
from export.default_model.pace import Pace, ema_decay  # noqa: E402
from export.default_model.pool import latent_masks  # noqa: E402
from tests.export.default_model.tiny import MODEL, SIZE, assert_same  # noqa: E402

pytestmark = pytest.mark.export


class TestObjective:
    def test_timesteps_cover_the_range(self) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = draw_timesteps(64, last=999, generator=generator)
        assert (drawn == 999).sum() >= 4
        assert drawn.min() < 60
        assert drawn.max() == 999

    def test_last_timestep_is_pure_noise(self) -> None:
        a_bar = build_scheduler().alphas_cumprod.float()
        noise = torch.randn(2, 4, 4, 4)
        x_t = add_noise(torch.ones(2, 4, 4, 4), noise, a_bar[torch.tensor([999, 999])])
        assert torch.allclose(x_t, noise, atol=1e-5)

    def test_hole_counts_most(self) -> None:
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., 2:4, 2:4] = 1
        truth = torch.zeros(1, 4, 8, 8)
        inside, outside = truth.clone(), truth.clone()
        inside[..., 2, 2] = 1
        outside[..., 7, 7] = 1
        assert hole_loss(inside, truth, mask) > 8 * hole_loss(outside, truth, mask)

    def test_latent_masks_by_both_rules(self) -> None:
        masks = torch.zeros(2, 1, 16, 16)
        masks[:, :, 3, 3] = 1
        small = latent_masks(masks)
        assert small[0].sum() == 0
        assert small[1].sum() == 1


class TestPace:
    def test_warm_up_constant_decay(self) -> None:
        pace = Pace(peak=1e-3, warmup=100)
        assert pace.rate(0) < pace.rate(50) < pace.rate(100) == pace.rate(10**6) == 1e-3
        ending = replace(pace, anneal_from=1000, anneal_for=400)
        assert ending.rate(1000) == 1e-3
        assert ending.rate(1100) == pytest.approx(0.5e-3)
        assert ending.rate(1400) == 0
        assert ending.finished(1400)
        assert not ending.finished(1399)

    def test_ema_reach_grows(self) -> None:
        early = ema_decay(32, half_life=30_000, batch=32)
        late = ema_decay(10**6, half_life=30_000, batch=32)
        assert early == 0.5
        assert late == pytest.approx(0.5 ** (32 / 30_000))


class TestTrainer:
    def test_three_steps(self, make_trainer: Any) -> None:
        trainer = make_trainer()
        assert list(trainer.pool.fill()) == [4, 8]
        before = [p.detach().clone() for p in trainer.parameters()]
        for _ in range(3):
            report = trainer.step()
            assert torch.isfinite(report.loss)
        assert (trainer.steps, trainer.samples) == (3, 12)
        assert trainer.pool.made == 12
        moved = [not torch.equal(a, b) for a, b in zip(before, trainer.parameters(), strict=True)]
        assert sum(moved) > 0.9 * len(moved)

    def test_resume_is_identical(self, make_trainer: Any, tmp_path: Path) -> None:
        straight = make_trainer()
        list(straight.pool.fill())
        for _ in range(2):
            straight.step()
        save_state(tmp_path, straight.state_dict())
        resumed = make_trainer(seed=7)
        state = load_state(tmp_path)
        assert state is not None
        resumed.load_state_dict(state)
        resumed.source.seed = straight.source.seed
        for _ in range(2):
            straight.step()
            resumed.step()
        assert resumed.samples == straight.samples == 16
        a, b = straight.state_dict(), resumed.state_dict()
        a.pop("settings"), b.pop("settings")
        assert_same(a, b)

    def test_other_networks_are_refused(self, make_trainer: Any) -> None:
        state = make_trainer().state_dict()
        other = make_trainer(model=replace(MODEL, channels=(16, 48)))
        with pytest.raises(ValueError, match="channels"):
            other.load_state_dict(state)

    def test_annealing_survives_a_resume(self, make_trainer: Any) -> None:
        trainer = make_trainer()
        trainer.samples = 100
        trainer.begin_annealing(50)
        again = make_trainer()
        again.load_state_dict(trainer.state_dict())
        assert again.pace.finished(150)
        with pytest.raises(ValueError, match="begun"):
            again.begin_annealing(50)

    def test_validation_is_repeatable(self, make_trainer: Any, composer: Composer) -> None:
        trainer = make_trainer()
        batches = trainer.validation_set(composer, 8)
        assert trainer.validate(batches) == trainer.validate(batches)


class TestCheckpoint:
    def test_previous_is_kept_and_used(self, tmp_path: Path) -> None:
        assert load_state(tmp_path) is None
        save_state(tmp_path, {"n": 1})
        save_state(tmp_path, {"n": 2})
        assert load_state(tmp_path) == {"n": 2}
        (tmp_path / "state.pt").unlink()
        assert load_state(tmp_path) == {"n": 1}

    def test_a_crash_while_writing_leaves_the_old_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_state(tmp_path, {"n": 1})

        def fail(state: object, stream: io.BufferedWriter) -> None:
            stream.write(b"half a file")
            raise OSError("disk full")

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            save_state(tmp_path, {"n": 2})
        assert load_state(tmp_path) == {"n": 1}


class TestCommandLines:
    def arguments(self, shards: Path, init: Path, output: Path) -> list[str]:
        words = f"--data {shards} --init {init} --output {output} --size {SIZE} --channels 16,32"
        words += " --batch 4 --pool 8 --chunk 4 --validation 4 --log-every 1 --validate-every 2"
        return words.split()

    @pytest.fixture(autouse=True)
    def _tiny_networks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = lambda **sizes: replace(MODEL, **sizes)  # noqa: E731
        monkeypatch.setattr(train, "ModelSettings", tiny)
        monkeypatch.setattr(train.signal, "signal", lambda *_: None)
        monkeypatch.setattr(vae.signal, "signal", lambda *_: None)

    def test_run_stops_resumes_and_anneals(
        self,
        shards: Path,
        init_folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        arguments = [*self.arguments(shards, init_folder, tmp_path / "run"), "--warm-start"]
        assert train.main([*arguments, "--samples", "12"]) == 0
        assert train.main([*arguments, "--samples", "20"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["samples"] for line in lines] == [4, 8, 12, 16, 20]
        assert "validation" in lines[1]
        assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 5
        monkeypatch.setattr(train, "SPEED_STEPS", 1)
        branch = self.arguments(shards, init_folder, tmp_path / "final")
        branch += ["--branch", str(tmp_path / "run"), "--anneal-minutes", "0.00001"]
        assert train.main(branch) == 0
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last["samples"] > 20
        assert last["rate"] == 0

    def test_saved_folder_opens_in_diffusers(
        self, shards: Path, init_folder: Path, tmp_path: Path
    ) -> None:
        arguments = self.arguments(shards, init_folder, tmp_path)
        assert train.main([*arguments, "--samples", "8"]) == 0
        pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
            tmp_path / "pipeline", torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.scheduler.config.prediction_type == "sample"
        picture = Image.new("RGB", (SIZE, SIZE), (90, 120, 200))
        result = pipeline(
            "a cat",
            image=picture,
            mask_image=Image.new("L", (SIZE, SIZE), 255),
            height=SIZE,
            width=SIZE,
            num_inference_steps=2,
            output_type="np",
        ).images
        assert result.shape == (1, SIZE, SIZE, 3)
        assert np.isfinite(result).all()

    def test_weights_of_other_sizes_are_refused(self, init_folder: Path, tokenizer: Any) -> None:
        wider = replace(MODEL, channels=(16, 48))
        with pytest.raises(ValueError, match="differ"):
            load_weights(init_folder, build_unet(wider), build_text_encoder(wider, tokenizer))

    def test_vae_stops_and_resumes(
        self, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = f"--data {shards} --output {tmp_path} --width 16 --size {SIZE} --side 16 --batch 2"
        arguments = [*words.split(), "--log-every", "1"]
        assert vae.main([*arguments, "--steps", "2"]) == 0
        assert vae.main([*arguments, "--steps", "3"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3]
        saved = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
        assert saved.config.scaling_factor > 0
