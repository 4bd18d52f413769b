"""Checkpoints of random weights in the shape of real ones, for size, time and memory figures.

    python -m bench.checkpoints sd15 OUTPUT [--half] [--seed N] [--safety-checker]

writes a diffusers folder with every tensor of Stable Diffusion 1.5 inpainting (UNet with 9 input
channels, AutoencoderKL, the text tower of CLIP ViT-L/14) and a byte-level CLIP tokenizer made
here; with ``--safety-checker`` also the picture tower of CLIP ViT-L/14 as a safety checker. Nothing
is downloaded, and the pictures are noise: only sizes and times are real.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

BOS: Final = "<|startoftext|>"
EOS: Final = "<|endoftext|>"
SENTENCE: Final = (
    "a photo of an old red apple and the small yellow cat in a big green house with a blue table "
    "on the white wall painting picture dog tree car flower sky sea chair lamp cup bird black new"
)


def write_tokenizer(
    folder: Path, *, max_length: int = 77, sentence: str = SENTENCE, pad_token: str = EOS
) -> dict[str, int]:
    """Write a CLIP tokenizer: all bytes, and merges that make each word of ``sentence`` one token.

    Returns:
        The vocabulary; its last two entries are the start and the end token.
    """
    symbols = list(_byte_symbols().values())
    tokens = symbols + [f"{symbol}</w>" for symbol in symbols]
    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys(sentence.split()):
        left = word[0]
        for i, letter in enumerate(word[1:], start=2):
            right = f"{letter}</w>" if i == len(word) else letter
            merges[left, right] = None
            left += right
    tokens += dict.fromkeys(left + right for left, right in merges)
    vocabulary = {token: index for index, token in enumerate([*tokens, BOS, EOS])}
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad_token}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "vocab.json", vocabulary)
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)
    return vocabulary


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, the folder made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model_index(
    folder: Path,
    *,
    scheduler: str,
    vae: str,
    pipeline: str,
    safety_checker: bool = False,
    second_text_encoder: bool = False,
) -> None:
    """Write ``model_index.json``; with a second text encoder, as SDXL's pipelines have it."""
    extractor = ["transformers", "CLIPImageProcessor"] if safety_checker else [None, None]
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"] if safety_checker else [None] * 2
    second: dict[str, Any] = {
        "force_zeros_for_empty_prompt": True,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    checked: dict[str, Any] = {
        "requires_safety_checker": safety_checker,
        "safety_checker": checker,
    }
    write_json(
        folder / "model_index.json",
        {
            "_class_name": pipeline,
            "_diffusers_version": "0.37.1",
            "feature_extractor": extractor,
            "image_encoder": [None, None],
            **(second if second_text_encoder else checked),
            "scheduler": ["diffusers", scheduler],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", vae],
        },
    )


def write_safety_checker(
    folder: Path, *, half: bool, side: int = 224, projection: int = 768, **vision: int
) -> None:
    """Write ``safety_checker/`` and ``feature_extractor/``: random weights, and thresholds two
    standard deviations above the mean cosine of noise, so that some of it is flagged.

    Args:
        folder: The diffusers folder.
        half: Store fp16 weights.
        side: Of the pictures that it sees, in pixels.
        projection: Width of the embeddings.
        vision: Entries of ``CLIPVisionConfig``.
    """
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    config = CLIPConfig(vision_config={"image_size": side, **vision}, projection_dim=projection)
    model = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        pictures = torch.randn(8, 3, side, side)
        embeds = model.visual_projection(model.vision_model(pictures)[1])
        centre = torch.nn.functional.normalize(embeds).mean(0)
        for texts, thresholds in (
            (model.special_care_embeds, model.special_care_embeds_weights),
            (model.concept_embeds, model.concept_embeds_weights),
        ):
            texts.copy_(torch.randn(texts.shape) + centre)
            cosines = torch.nn.functional.cosine_similarity(embeds[:, None], texts[None], dim=2)
            thresholds.copy_(cosines.mean(0) + 2 * cosines.std(0))
    model.to(torch.float16 if half else torch.float32).save_pretrained(folder / "safety_checker")
    extractor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    extractor.save_pretrained(folder / "feature_extractor")


def write_sd15(
    folder: Path, *, half: bool = False, seed: int = 0, safety_checker: bool = False
) -> Path:
    """Write the Stable Diffusion 1.5 inpainting shape with random weights (4.3 GB in fp32).

    Args:
        folder: Where the diffusers folder goes.
        half: Store fp16 weights, half the size.
        seed: Of the weights.
        safety_checker: Write the CLIP ViT-L/14 safety checker too (1.2 GB in fp32).
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    dtype = torch.float16 if half else torch.float32
    vocabulary = write_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        projection_dim=768,
        bos_token_id=vocabulary[BOS],
        eos_token_id=vocabulary[EOS],
        pad_token_id=vocabulary[EOS],
    )
    CLIPTextModel(text).to(dtype).save_pretrained(folder / "text_encoder")
    levels = (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    )
    vae.to(dtype).save_pretrained(folder / "vae")
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=9, out_channels=4, cross_attention_dim=768, attention_head_dim=8
    )
    unet.to(dtype).save_pretrained(folder / "unet", max_shard_size="20GB")
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_model_index(
        folder,
        scheduler="PNDMScheduler",
        vae="AutoencoderKL",
        pipeline="StableDiffusionInpaintPipeline",
        safety_checker=safety_checker,
    )
    if safety_checker:
        large = {"hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14}
        layers = {"num_hidden_layers": 24, "num_attention_heads": 16}
        write_safety_checker(folder, half=half, **large, **layers)
    return folder


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable symbol for each of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in symbols]
    return symbols | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoints", description=__doc__)
    parser.add_argument("shape", choices=["sd15"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--half", action="store_true", help="store fp16 weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--safety-checker", action="store_true", help="with a safety checker")
    chosen = parser.parse_args(arguments)
    if chosen.output.exists():
        print(f"{chosen.output}: exists already", file=sys.stderr)
        return 1
    checker = chosen.safety_checker
    print(write_sd15(chosen.output, half=chosen.half, seed=chosen.seed, safety_checker=checker))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
