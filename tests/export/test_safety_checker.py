"""The checkpoint's own safety checker: the same flags as diffusers', and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from bench.checkpoints import write_safety_checker
from engine.bundle import Bundle, FileRecord, Safety
from engine.safety_checker import SafetyChecker, clip, clip_flags, clip_input
from engine.sessions import open_session, select
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.exporter import _export_network, _Stages
from export.preprocessor import read_preprocessor
from tests.export.originals import TOLERANCE, session

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.export

Get = Callable[[str], Path]
GetBundle = Callable[[str], Bundle]
Rgb = npt.NDArray[np.uint8]

COUNT = 200


def pictures() -> list[Rgb]:
    """Of many shapes and colours: coarse noise brought to size."""
    import cv2

    random = np.random.default_rng(0)
    made = []
    for _ in range(COUNT):
        width, height = (int(side) for side in random.integers(33, 200, 2))
        cells = random.integers(0, 256, (4, 4, 3)) * random.random(3)
        picture = cv2.resize(cells.astype(np.uint8), (width, height))
        made.append(np.asarray(picture, np.uint8))
    return made


def original(folder: Path) -> tuple[Any, Any]:
    """The checkpoint's checker and feature extractor as diffusers' pipelines load them."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    checker = StableDiffusionSafetyChecker.from_pretrained(
        folder / "safety_checker", dtype=torch.float32
    )
    return checker.eval(), CLIPImageProcessor.from_pretrained(folder / "feature_extractor")


def test_the_flags_are_those_of_diffusers(checkpoint: Get, exported: GetBundle) -> None:
    from PIL import Image

    bundle = exported("plain_kl")
    assert bundle.safety is not None
    model, extractor = original(checkpoint("plain_kl"))
    images = pictures()
    # Thresholds among the pictures' own cosines, so that there is something of everything.
    seen = [extractor(Image.fromarray(image), return_tensors="pt").pixel_values for image in images]
    rows = np.stack([clip_input(image, safety=bundle.safety) for image in images])
    cosines = session(bundle, "safety_checker")(image=rows)
    thresholds = np.quantile(cosines, 0.95, axis=0).astype(np.float32)
    split = len(bundle.safety.special_care)
    with torch.no_grad():
        model.special_care_embeds_weights.copy_(torch.from_numpy(thresholds[:split]))
        model.concept_embeds_weights.copy_(torch.from_numpy(thresholds[split:]))
    safety = dataclasses.replace(
        bundle.safety,
        special_care=tuple(map(float, thresholds[:split])),
        concepts=tuple(map(float, thresholds[split:])),
    )
    wanted = [
        flag
        for pixels in seen
        for flag in model(clip_input=pixels, images=np.zeros((1, 8, 8, 3)))[1]
    ]
    kind = clip(bundle.path, bundle.components["safety_checker"], safety)
    checker = SafetyChecker(kind, partial(open_session, select("cpu"), threads=1))
    assert [flag for image in images for flag in checker(image[None])] == wanted
    assert COUNT / 10 < sum(wanted) < COUNT * 9 / 10
    careless = dataclasses.replace(safety, special_care=(9.0,) * split)
    assert clip_flags(cosines, safety=careless).tolist() != wanted


@pytest.mark.parametrize("sides", [(64, 64), (512, 512), (333, 777), (1024, 100), (225, 224)])
def test_clip_sees_the_same_to_the_last_bit(sides: tuple[int, int]) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor()
    seen = read_preprocessor(Path("x"), processor.to_dict())
    safety = Safety(**dataclasses.asdict(seen), special_care=(), concepts=(0.0,))
    picture = np.random.default_rng(1).integers(0, 256, (*sides, 3), dtype=np.uint8)
    wanted = processor(Image.fromarray(picture), return_tensors="np").pixel_values[0]
    found = clip_input(picture, safety=safety)
    assert (found.dtype, found.shape) == (np.float32, (3, 224, 224))
    np.testing.assert_array_equal(found, wanted)


def test_rounding_and_special_care_are_those_of_diffusers(checkpoint: Get) -> None:
    """Cosines on a grid of ten-thousandths, where the rounding decides."""
    model, _ = original(checkpoint("plain_kl"))
    random = np.random.default_rng(2)
    beyond = (random.integers(-9, 7, (2000, 20)) / 1e4).astype(np.float32)
    beyond[::3, 3:] -= np.float32(0.01)
    thresholds = (random.integers(1500, 3000, 20) / 1e4).astype(np.float32)
    cosines = beyond + thresholds
    safety = Safety(
        shortest_edge=1,
        crop=1,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        special_care=tuple(map(float, thresholds[:3])),
        concepts=tuple(map(float, thresholds[3:])),
    )
    with torch.no_grad():
        model.special_care_embeds_weights.copy_(torch.from_numpy(thresholds[:3]))
        model.concept_embeds_weights.copy_(torch.from_numpy(thresholds[3:]))
    wanted = told_by_diffusers(model, cosines)
    assert clip_flags(cosines, safety=safety).tolist() == wanted
    assert 100 < sum(wanted) < 1900


def told_by_diffusers(model: Any, cosines: npt.NDArray[np.float32]) -> list[bool]:
    """The flags of the original's own loop for given cosines, instead of those of pictures."""
    from unittest import mock

    answers = iter([torch.from_numpy(cosines[:, :3]), *[torch.from_numpy(cosines[:, 3:])] * 2])
    module = "diffusers.pipelines.stable_diffusion.safety_checker.cosine_distance"
    pixels = torch.zeros(len(cosines), 3, 32, 32)
    with mock.patch(module, side_effect=lambda *_: next(answers)):
        flags = model(clip_input=pixels, images=np.zeros((len(cosines), 1, 1, 3)))[1]
    return [bool(flag) for flag in flags]


def test_half_weights_are_stored_in_half_at_another_size(checkpoint: Get, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("plain_kl"), tmp_path / "copy"))
    shutil.rmtree(folder / "safety_checker")
    shutil.rmtree(folder / "feature_extractor")
    size = {"hidden_size": 192, "intermediate_size": 768, "patch_size": 14}
    layers = {"num_hidden_layers": 3, "num_attention_heads": 6}
    with torch.random.fork_rng():
        write_safety_checker(folder, half=True, projection=96, **size, **layers)
    from export import networks

    network = networks.safety_checker(Checkpoint.open(folder), side=224)
    output = tmp_path / "out"
    output.mkdir()
    component = _export_network("safety_checker", lambda: network, output, _Stages(None))
    weights = sum(parameter.numel() for parameter in network.module.parameters())
    file = output / "safety_checker.onnx"
    assert component.model == FileRecord.of(file)
    assert 2 * weights < component.model.size < 2.2 * weights
    half = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in onnx.load(file).graph.initializer)
    assert half > 10
    assert component.parity is not None
    assert component.parity.max_abs_error < TOLERANCE


@pytest.fixture
def folder(checkpoint: Get, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(checkpoint("plain_kl"), tmp_path / "copy"))


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_it_can_be_left_out(folder: Path) -> None:
    assert "safety_checker" in Checkpoint.open(folder).variant
    left = Checkpoint.open(folder, safety_checker=False)
    assert left.preprocessor is None
    assert "safety_checker" not in left.variant
    assert left.digest() != Checkpoint.open(folder).digest()
    change(folder / "model_index.json", safety_checker=[None, None])
    assert Checkpoint.open(folder).digest() == left.digest()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"do_resize": False}, "do_resize is False; only true is supported"),
        ({"resample": 2}, "resample is 2; only 3 (bicubic) is supported"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0; only 1/255"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x'; only 1/255"),
        ({"size": {"height": 32, "width": 32}}, "size is {'height': 32, 'width': 32}; a whole"),
        ({"size": 0}, "size is 0; a whole number from 1 to 4096"),
        ({"crop_size": {"height": 32, "width": 31}}, "crop_size is {'height': 32, 'width': 31}"),
        ({"crop_size": 64}, "crop_size is 64, above the size 32"),
        ({"image_mean": [0.5]}, "image_mean is [0.5]; 3 numbers are needed"),
    ],
)
def test_other_preprocessing_is_refused(
    folder: Path, entries: dict[str, Any], message: str
) -> None:
    file = folder / "feature_extractor" / "preprocessor_config.json"
    change(file, **entries)
    with pytest.raises(ExportError) as caught:
        Checkpoint.open(folder)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "safety_checker=False (--no-safety-checker) leaves it out" in str(caught.value)
    assert Checkpoint.open(folder, safety_checker=False).preprocessor is None


def test_old_extractors_give_plain_numbers() -> None:
    seen = read_preprocessor(Path("x"), {"size": 224, "crop_size": 224, "resample": 3})
    assert (seen.shortest_edge, seen.crop) == (224, 224)
    assert seen.mean[0] == 0.48145466


def test_other_checkers_are_refused(folder: Path) -> None:
    index = folder / "model_index.json"
    change(index, safety_checker=["x", "Watchdog"])
    with pytest.raises(ExportError, match="safety_checker is 'Watchdog'; supported: Stable"):
        Checkpoint.open(folder)
    change(index, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    weights = folder / "safety_checker" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ExportError, match=r"is a pickle, .*--no-safety-checker"):
        Checkpoint.open(folder)
    shutil.rmtree(folder / "safety_checker")
    with pytest.raises(ExportError, match=r"holds no weights; .*--no-safety-checker"):
        Checkpoint.open(folder)


def test_a_crop_that_the_network_does_not_take_is_refused(folder: Path) -> None:
    from export import networks

    file = folder / "feature_extractor" / "preprocessor_config.json"
    change(file, crop_size=24)
    build = networks.builders(Checkpoint.open(folder), tokens=77)["safety_checker"]
    with pytest.raises(ExportError, match=r"sees pictures of 32 pixels, but .* crop_size is 24"):
        build()
