"""``edgefill export``: turn a checkpoint into a model bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.commands.arguments import add_json
from service.console import Advance, CommandError, progress, reason

if TYPE_CHECKING:
    from engine import Bundle
    from service.commands.arguments import Commands

TARGETS: Final = ("cpu",)
PRECISIONS: Final = ("fp32", "fp16", "int8")
OURS: Final = ("engine", "export", "service", "bench")


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "export",
        help="turn a checkpoint into a model bundle",
        description="Turn a checkpoint into a bundle that the engine runs without torch. "
        "Needs the export extra: pip install 'edgefill[export]'",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="diffusers folder, name on the hub, or single .safetensors file",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where the bundle goes"
    )
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="default: cpu")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="how weights are stored; the processor computes in fp32 (default: fp32)",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle in DIR")
    parser.add_argument(
        "--no-safety-checker",
        action="store_true",
        help="leave out the checkpoint's own safety checker, if it has one",
    )
    parser.add_argument(
        "--fast-vae",
        type=Path,
        metavar="DIR",
        help="folder of an AutoencoderTiny (TAESD): a second, faster decoder",
    )
    parser.add_argument(
        "--deep-cache",
        action="store_true",
        help="split the UNet, so that requests may run its outer layers alone at some steps",
    )
    parser.add_argument(
        "--deep-cache-branch",
        type=int,
        default=0,
        metavar="N",
        help="skip connection to cut at, counted from the outermost (default: 0)",
    )
    parser.add_argument(
        "--clip-skip",
        type=int,
        metavar="N",
        help="let requests leave out up to N of the text encoder's last layers",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="CLIP's tokenizer for a single file: a diffusers tokenizer folder, or OpenAI's list "
        "of merges; that of an installed open_clip or clip package where left out",
    )
    parser.add_argument(
        "--prediction-type",
        metavar="NAME",
        help="what the UNet of a single file predicts, where it does not say: epsilon, "
        "v_prediction",
    )
    parser.add_argument(
        "--vae",
        type=Path,
        metavar="PATH",
        help="another autoencoder in place of the checkpoint's: its folder, or a file in the "
        "original layout",
    )
    parser.add_argument(
        "--lora",
        action="append",
        type=_lora,
        default=[],
        metavar="FILE[:SCALE]",
        help="LoRA fused into the weights, 1 where SCALE is left out; may be given several times",
    )
    parser.add_argument("--scheduler", metavar="NAME", help="scheduler of requests that name none")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of requests that name none")
    parser.add_argument(
        "--guidance", type=float, metavar="SCALE", help="guidance of requests that name none"
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _lora(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:SCALE``; a colon that no number follows is the file's."""
    file, colon, scale = text.rpartition(":")
    try:
        return (Path(file), float(scale)) if colon and file else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def _run(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    try:
        with progress("exporting") as advance:
            bundle = _export(arguments, advance)
    except ImportError as exc:
        module = (exc.name or "").partition(".")[0]
        if not module or module in OURS:
            raise
        raise CommandError(
            f"export needs {module}, which is not installed", hint="pip install 'edgefill[export]'"
        ) from exc
    except OSError as exc:
        raise CommandError(f"cannot export to {output}: {reason(exc)}") from exc
    _tell(bundle, output, as_json=arguments.json)
    return 0


def _export(arguments: argparse.Namespace, advance: Advance) -> Bundle:
    from export import ExportError, export_checkpoint

    try:
        return export_checkpoint(
            arguments.checkpoint,
            arguments.output,
            target=arguments.target,
            precision=arguments.precision,
            progress=advance,
            overwrite=arguments.overwrite,
            revision=arguments.revision,
            safety_checker=not arguments.no_safety_checker,
            fast_vae=arguments.fast_vae,
            deep_cache=arguments.deep_cache_branch if arguments.deep_cache else None,
            clip_skip=arguments.clip_skip,
            clip_tokenizer=arguments.tokenizer,
            prediction_type=arguments.prediction_type,
            vae=arguments.vae,
            loras=arguments.lora,
            scheduler=arguments.scheduler,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
        )
    except ExportError as exc:
        raise CommandError(str(exc)) from exc


def _tell(bundle: Bundle, output: Path, *, as_json: bool) -> None:
    size = sum(record.size for record in bundle.files())
    parity = {
        name: {"psnr_db": part.parity.psnr_db, "max_abs_error": part.parity.max_abs_error}
        for name, part in bundle.components.items()
        if part.parity is not None
    }
    if as_json:
        record = {
            "output": str(output.absolute()),
            "family": bundle.family,
            "target": bundle.target,
            "precision": bundle.precision,
            "bytes": size,
            "parity": parity,
        }
        print(json.dumps(record))
        return
    print(f"bundle: {output.absolute()}")
    print(f"kind: {bundle.family}, {bundle.target}, {bundle.precision}, {size / 1e6:.1f} MB")
    for name, figures in parity.items():
        psnr, error = figures["psnr_db"], figures["max_abs_error"]
        print(f"parity of {name}: {psnr:.1f} dB, at most {error:.2g} off")
