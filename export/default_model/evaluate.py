"""Contact sheets and figures of a diffusers folder: `python -m export.default_model.evaluate`.

For: seeing and measuring what a checkpoint does, through diffusers' own pipeline and on photographs
that training never saw. Writes `sheet.png`, `completion.png` and `figures.json` into one folder;
the figures also go to stdout. Imports torch and diffusers; changes no checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline
from numpy.typing import NDArray
from PIL import Image

from export.default_model.data import load_photos
from export.default_model.hole import free_mask
from export.default_model.vocabulary import NOUNS, with_article

Pixels = NDArray[np.uint8]

SHEET_PROMPTS = (
    "a red apple",
    "a cat",
    "a birthday cake",
    "a guitar",
    "a pine tree",
    "a taxi",
    "a sunflower",
    "a hamburger",
    "a rocket",
    "a penguin",
    "a teddy bear",
    "a crown",
    "a blue car",
    "a green balloon",
    "a purple umbrella",
    "a house",
    "a strawberry",
    "an owl",
    "a snowman",
    "a heart",
    "",
)
SCALE = 2
"""Enlargement of pictures on contact sheets."""

GAP = 2
LABEL_WIDTH = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture with a hole: image (S, S, 3) uint8 RGB and mask (S, S) uint8, 1 in the hole."""

    image: Pixels
    mask: Pixels


def load_pipeline(folder: Path) -> StableDiffusionInpaintPipeline:
    """Opens a diffusers folder with the stock pipeline, in float32."""
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def object_scenes(photos: Sequence[Pixels], size: int) -> list[Scene]:
    """Two plain walls and some photographs, each with a box or an ellipse as hole."""
    wall = np.full((size, size, 3), (236, 234, 228), np.uint8)
    wall[size * 3 // 4 :] = (205, 190, 170)
    fade = np.linspace(0, 1, size)[:, None, None]
    sky = np.broadcast_to(np.array([90, 150, 220]) * (1 - fade) + 235 * fade, wall.shape)
    crops = [photo[:size, :size] for photo in photos[:3]]
    scenes: list[Scene] = []
    for number, image in enumerate([wall, sky.astype(np.uint8), *crops]):
        mask = np.zeros((size, size), np.uint8)
        if number % 2:
            centre, axes = (size // 2, size // 2), (size * 3 // 8, size * 3 // 8)
            cv2.ellipse(mask, centre, axes, 0, 0, 360, (1,), -1)
        else:
            mask[size // 6 : size * 5 // 6, size // 6 : size * 5 // 6] = 1
        scenes.append(Scene(image=np.ascontiguousarray(image), mask=mask))
    return scenes


def completion_scenes(photos: Sequence[Pixels], *, size: int, count: int, seed: int) -> list[Scene]:
    """Crops of photographs with free holes of 10 to 25 % of the area."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        photo = photos[len(scenes) % len(photos)]
        mask = free_mask(rng, size)
        if 0.1 <= mask.mean() <= 0.25:
            y = rng.integers(photo.shape[0] - size + 1)
            x = rng.integers(photo.shape[1] - size + 1)
            image = np.ascontiguousarray(photo[y : y + size, x : x + size])
            scenes.append(Scene(image=image, mask=mask))
    return scenes


def paint(
    pipeline: StableDiffusionInpaintPipeline,
    scenes: Sequence[Scene],
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
) -> list[Pixels]:
    """Fills the holes; pixels outside stay as they were.

    Args:
        pipeline: The model.
        scenes: Pictures of one size.
        prompts: One prompt per scene.
        steps: Number of inference steps.
        guidance: Guidance scale.
        seed: Scene k starts from noise of seed + k.

    Returns:
        (S, S, 3) uint8 pictures.
    """
    size = scenes[0].image.shape[0]
    output = pipeline(
        list(prompts),
        image=[Image.fromarray(s.image) for s in scenes],
        mask_image=[Image.fromarray(s.mask * 255) for s in scenes],
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed + k) for k in range(len(scenes))],
        output_type="np",
    ).images
    painted = np.rint(output * 255).astype(np.uint8)
    return [
        np.where(s.mask[..., None] > 0, p, s.image) for s, p in zip(scenes, painted, strict=True)
    ]


def masked_psnr(result: Pixels, scene: Scene) -> float:
    """Peak signal-to-noise ratio inside the hole, dB."""
    difference = (result.astype(np.float64) - scene.image)[scene.mask > 0] / 255
    return float(-10 * np.log10(np.square(difference).mean() + 1e-10))


def completion_figures(
    pipeline: StableDiffusionInpaintPipeline, scenes: Sequence[Scene], *, seed: int
) -> tuple[dict[str, float], dict[str, list[Pixels]]]:
    """Masked PSNR of the model with an empty prompt beside simple ways to fill a hole.

    Returns:
        Mean dB by method, and the pictures by method.
    """
    results: dict[str, list[Pixels]] = {"mean colour": [], "telea": [], "navier-stokes": []}
    for scene in scenes:
        flat = scene.image.copy()
        flat[scene.mask > 0] = scene.image[scene.mask == 0].mean(axis=0)
        results["mean colour"].append(flat)
        for name, how in (("telea", cv2.INPAINT_TELEA), ("navier-stokes", cv2.INPAINT_NS)):
            filled = cv2.inpaint(scene.image, scene.mask, 5, how)
            results[name].append(np.asarray(filled, np.uint8))
    empty = [""] * len(scenes)
    for steps in (4, 8, 50):
        results[f"model, {steps} steps"] = paint(
            pipeline, scenes, empty, steps=steps, guidance=1.0, seed=seed
        )
    figures = {
        name: round(
            float(np.mean([masked_psnr(p, s) for p, s in zip(many, scenes, strict=True)])), 2
        )
        for name, many in results.items()
    }
    return figures, results


def step_figures(
    pipeline: StableDiffusionInpaintPipeline, scene: Scene, *, guidance: float, seed: int
) -> dict[str, float]:
    """How near few steps come to 50 on every noun: masked PSNR against the 50-step picture, dB."""
    prompts = [with_article(noun.name, plural=noun.plural) for noun in NOUNS]
    scenes = [scene] * len(prompts)
    pictures = {
        steps: paint(pipeline, scenes, prompts, steps=steps, guidance=guidance, seed=seed)
        for steps in (4, 8, 50)
    }
    goals = [Scene(image=p, mask=scene.mask) for p in pictures[50]]
    return {
        f"{steps} steps to 50": round(
            float(
                np.mean([masked_psnr(p, g) for p, g in zip(pictures[steps], goals, strict=True)])
            ),
            2,
        )
        for steps in (4, 8)
    }


def contact_sheet(rows: Sequence[tuple[str, Sequence[Pixels]]]) -> Image.Image:
    """Arranges labelled rows of equal pictures."""
    height, width = (n * SCALE + GAP for n in rows[0][1][0].shape[:2])
    columns = max(len(pictures) for _, pictures in rows)
    sheet = np.full((height * len(rows), LABEL_WIDTH + width * columns, 3), 255, np.uint8)
    for y, (label, pictures) in enumerate(rows):
        place = (4, y * height + height // 2)
        cv2.putText(sheet, label or '""', place, 0, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        for x, picture in enumerate(pictures):
            large = cv2.resize(picture, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
            top, left = y * height, LABEL_WIDTH + x * width
            sheet[top : top + large.shape[0], left : left + large.shape[1]] = large
    return Image.fromarray(sheet)


def holes(scenes: Sequence[Scene]) -> list[Pixels]:
    """The scenes with their holes painted magenta."""
    magenta = np.array([255, 0, 255], np.uint8)
    return [np.where(s.mask[..., None] > 0, magenta, s.image) for s in scenes]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the evaluation; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m export.default_model.evaluate",
        description="Contact sheets and figures of a checkpoint of the default model.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the shards")
    add("--model", type=Path, required=True, help="diffusers folder")
    add("--output", type=Path, required=True, help="folder for sheets and figures")
    add("--size", type=int, default=128, help="pixels (%(default)s)")
    add("--steps", type=int, default=8, help="(%(default)s)")
    add("--guidance", type=float, default=3.0, help="(%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--scenes", type=int, default=40, help="completion scenes (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--sheet-only", action="store_true", help="only the contact sheet of objects")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(args.model)
    photos = load_photos(args.data, short_side=args.size, held_out=True)
    scenes = object_scenes(photos, args.size)
    rows = [("", holes(scenes))]
    for prompt in SHEET_PROMPTS:
        prompts = [prompt] * len(scenes)
        guidance = args.guidance if prompt else 1.0
        painted = paint(
            pipeline, scenes, prompts, steps=args.steps, guidance=guidance, seed=args.seed
        )
        rows.append((prompt, painted))
    contact_sheet(rows).save(args.output / "sheet.png")
    if args.sheet_only:
        return 0
    larger = load_photos(args.data, short_side=args.size * 3 // 2, held_out=True)
    completion = completion_scenes(larger, size=args.size, count=args.scenes, seed=args.seed)
    psnr, pictures = completion_figures(pipeline, completion, seed=args.seed)
    shown = [("hole", holes(completion)[:10]), ("photograph", [s.image for s in completion[:10]])]
    shown += [(name, many[:10]) for name, many in pictures.items()]
    contact_sheet(shown).save(args.output / "completion.png")
    nearness = step_figures(pipeline, scenes[0], guidance=args.guidance, seed=args.seed)
    figures = {"completion_psnr_db": psnr, "psnr_db_against_50_steps": nearness}
    text = json.dumps(figures, indent=2)
    (args.output / "figures.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
