"""``edgefill inpaint``: fill the hole in one picture."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from service.commands.arguments import add_engine, add_json
from service.commands.pictures import output_paths, read_mask, read_picture, write_picture
from service.console import USAGE, CommandError, progress, warn

if TYPE_CHECKING:
    from engine import InpaintRequest, InpaintResult, InputError
    from service.commands.arguments import Commands

DEMO: Final = Path(__file__).parent.parent / "demo"
DEMO_PROMPT: Final = "a sunflower"
DEMO_SEED: Final = 2
DEMO_OUTPUT: Final = Path("edgefill-demo.png")

_FLAGS: Final = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
"""Fields of a request whose flag has another name."""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "inpaint",
        help="fill the hole in one picture",
        description="Fill the white part of MASK in IMAGE with what PROMPT says.",
        allow_abbrev=False,
    )
    parser.add_argument("--demo", action="store_true", help="use the pictures that ship with us")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture, PNG or JPEG")
    parser.add_argument(
        "--mask", type=Path, metavar="FILE", help="white is filled anew, black is kept"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what shall appear in the hole")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write, .png or .jpg")
    parser.add_argument("--negative-prompt", metavar="TEXT", default="", help="what shall not")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="default: the picture's")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="default: the picture's")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="1 to 4 pictures")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same picture")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    parser.add_argument("--guidance", type=float, metavar="X", help="how closely to follow PROMPT")
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="X", help="0 keeps, 1 forgets the hole"
    )
    parser.add_argument("--scheduler", metavar="NAME", help="for example ddim, euler or dpmpp_2m")
    parser.add_argument(
        "--region",
        choices=("auto", "full", "mask"),
        default="auto",
        help="work on the whole picture, or on the box round the mask",
    )
    parser.add_argument(
        "--working-size",
        type=int,
        metavar="PIXELS",
        help="longer side of what the networks see, a multiple of 8: smaller is quicker",
    )
    parser.add_argument(
        "--vae", choices=("full", "fast"), default="full", help="the bundle's decoder to use"
    )
    parser.add_argument(
        "--guidance-share",
        type=float,
        default=1.0,
        metavar="X",
        help="share of the steps, from the first, made with guidance; the rest cost half",
    )
    parser.add_argument(
        "--deep-cache-interval",
        type=int,
        default=1,
        metavar="N",
        help="run the whole UNet at every N-th step only; the bundle must be made for it",
    )
    parser.add_argument(
        "--prompt-syntax",
        choices=("plain", "a1111"),
        default="plain",
        help="a1111: weights such as (word:1.3), and long prompts, as in AUTOMATIC1111's web UI",
    )
    parser.add_argument(
        "--clip-skip",
        type=int,
        default=0,
        metavar="N",
        help="leave out the text encoder's last N layers; the bundle must be made for it",
    )
    parser.add_argument(
        "--safety-checker",
        action="store_true",
        help="check the pictures; one that is not safe for work becomes black",
    )
    add_engine(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    demo: bool = arguments.demo
    image: Path | None = arguments.image or (DEMO / "photo.png" if demo else None)
    mask: Path | None = arguments.mask or (DEMO / "mask.png" if demo else None)
    prompt = DEMO_PROMPT if demo and arguments.prompt is None else arguments.prompt
    output: Path | None = arguments.output or (DEMO_OUTPUT if demo else None)
    if image is None or mask is None or prompt is None or output is None:
        given = {"image": image, "mask": mask, "prompt": prompt, "output": output}
        missing = ", ".join(f"--{name}" for name, value in given.items() if value is None)
        raise CommandError(
            f"missing: {missing}",
            hint="`edgefill inpaint --demo` runs on pictures that ship with Edgefill",
            code=USAGE,
        )
    if demo and (arguments.image is None) != (arguments.mask is None):
        raise CommandError("--image and --mask go together", code=USAGE)
    inpaint(
        image=image,
        mask=mask,
        prompt=prompt,
        output=output,
        negative_prompt=arguments.negative_prompt,
        width=arguments.width,
        height=arguments.height,
        samples=arguments.samples,
        seed=DEMO_SEED if demo and arguments.seed is None else arguments.seed,
        steps=arguments.steps,
        guidance=arguments.guidance,
        strength=arguments.strength,
        scheduler=arguments.scheduler,
        region=arguments.region,
        bundle=arguments.bundle,
        device=arguments.device or "auto",
        safety_checker=arguments.safety_checker,
        working_size=arguments.working_size,
        vae=arguments.vae,
        guidance_share=arguments.guidance_share,
        deep_cache_interval=arguments.deep_cache_interval,
        prompt_syntax=arguments.prompt_syntax,
        clip_skip=arguments.clip_skip,
        as_json=arguments.json,
    )
    return 0


def inpaint(
    *,
    image: Path,
    mask: Path,
    prompt: str,
    output: Path,
    negative_prompt: str,
    width: int | None,
    height: int | None,
    samples: int,
    seed: int | None,
    steps: int | None,
    guidance: float | None,
    strength: float,
    scheduler: str | None,
    region: Literal["auto", "full", "mask"],
    bundle: Path | None,
    device: str,
    safety_checker: bool,
    working_size: int | None,
    vae: Literal["full", "fast"],
    guidance_share: float,
    deep_cache_interval: int,
    prompt_syntax: Literal["plain", "a1111"],
    clip_skip: int,
    as_json: bool,
) -> None:
    """Fill the hole, write the pictures, and say where they went.

    Raises:
        CommandError: For every failure that a user can cause or mend.
    """
    paths = output_paths(output, samples)
    picture, hole = read_picture(image), read_mask(mask)
    from engine import InpaintRequest, InputError
    from service.safety import blacken

    try:
        request = InpaintRequest(
            image=picture,
            mask=hole,
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            samples=samples,
            seed=seed,
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance,
            scheduler=scheduler,
            region=region,
            safety_checker=safety_checker,
            working_size=working_size,
            vae=vae,
            guidance_share=guidance_share,
            deep_cache_interval=deep_cache_interval,
            prompt_syntax=prompt_syntax,
            clip_skip=clip_skip,
        )
        result, ran_on = _fill(request, bundle=bundle, device=device)
    except InputError as exc:
        raise _wrong_value(exc) from exc
    for path, rgb in zip(paths, blacken(result.images, result.nsfw), strict=True):
        write_picture(path, rgb)
    for path, flagged in zip(paths, result.nsfw or (), strict=False):
        if flagged:
            warn(f"{path} is black: the safety checker flagged what was made as not safe for work")
    model = str(bundle) if bundle is not None else "default bundle"
    if as_json:
        print(json.dumps(_record(result, paths, model, ran_on)))
    else:
        _tell(result, paths, model, ran_on)


def _fill(
    request: InpaintRequest, *, bundle: Path | None, device: str
) -> tuple[InpaintResult, str]:
    """The result, and the device it was made on."""
    from engine import BundleError, Engine, EngineError, InputError
    from service.safety import find

    checker = find() if request.safety_checker else None
    file = None if checker is None else checker.path
    try:
        with (
            progress("loading the model") as advance,
            Engine.open(bundle, device=device, safety_checker=file) as engine,
        ):
            if checker is not None and engine.safety_checker is None:
                raise CommandError(
                    f"the bundle has no safety checker of its own, and {checker.detail}",
                    hint=checker.hint,
                )
            ticket = engine.submit(
                request, on_step=lambda step, total, preview: advance("denoising", step, total)
            )
            try:
                return ticket.result(), engine.device.name
            except KeyboardInterrupt:
                ticket.cancel()
                raise
    except InputError:
        raise
    except BundleError as exc:
        raise CommandError(
            str(exc), hint="`edgefill export CHECKPOINT --output DIR` makes a bundle"
        ) from exc
    except EngineError as exc:
        raise CommandError(
            str(exc), hint="`edgefill doctor` shows what works on this machine"
        ) from exc


def _wrong_value(error: InputError) -> CommandError:
    flag = _FLAGS.get(error.field, error.field).replace("_", "-")
    return CommandError(f"--{flag} {error.message}", code=USAGE)


def _record(result: InpaintResult, paths: list[Path], model: str, device: str) -> dict[str, object]:
    stages = dataclasses.asdict(result.timings)
    height, width = result.images.shape[1:3]
    return {
        "output": [str(path.absolute()) for path in paths],
        "width": width,
        "height": height,
        "seed": result.seed,
        "num_inference_steps": result.num_inference_steps,
        "steps_run": result.steps_run,
        "guidance_scale": result.guidance_scale,
        "scheduler": result.scheduler,
        "region": list(result.region),
        "working_size": list(result.working_size),
        "bundle": model,
        "device": device,
        "timings": {name: round(seconds, 4) for name, seconds in stages.items()},
        "nsfw": None if result.nsfw is None else list(result.nsfw),
    }


def _tell(result: InpaintResult, paths: list[Path], model: str, device: str) -> None:
    height, width = result.images.shape[1:3]
    for i, path in enumerate(paths):
        print(f"picture: {path.absolute()} ({width}x{height}, seed {result.seed + i})")
    print(f"model: {model} on {device}")
    steps, run = result.num_inference_steps, result.steps_run
    how_many = f"{steps}" if run == steps else f"{steps}, {run} of them run"
    if run > steps:  # pndm makes its second step twice
        how_many = f"{steps}, one of them twice"
    print(f"steps: {how_many}; {result.scheduler}, guidance {result.guidance_scale:g}")
    for stage, seconds in dataclasses.asdict(result.timings).items():
        print(f"{stage.replace('_', ' ')}: {seconds:.3f} s")
