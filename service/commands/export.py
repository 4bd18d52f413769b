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
PRECISIONS: Final = ("fp32",)
OURS: Final = ("engine", "export", "service", "bench")


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "export",
        help="turn a checkpoint into a model bundle",
        description="Turn a diffusers checkpoint into a bundle that the engine runs without torch. "
        "Needs the export extra: pip install 'edgefill[export]'",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, or name on the hub")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where the bundle goes"
    )
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="default: cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
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
        type=int,
        nargs="?",
        const=0,
        metavar="BRANCH",
        help="split the UNet, so that requests may run its outer layers alone at some steps; "
        "BRANCH: skip connection to cut at, counted from the outermost (0 where left out)",
    )
    parser.add_argument(
        "--clip-skip",
        type=int,
        metavar="N",
        help="let requests leave out up to N of the text encoder's last layers",
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    export(
        arguments.checkpoint,
        arguments.output,
        target=arguments.target,
        precision=arguments.precision,
        revision=arguments.revision,
        overwrite=arguments.overwrite,
        safety_checker=not arguments.no_safety_checker,
        fast_vae=arguments.fast_vae,
        deep_cache=arguments.deep_cache,
        clip_skip=arguments.clip_skip,
        as_json=arguments.json,
    )
    return 0


def export(
    checkpoint: str,
    output: Path,
    *,
    target: str,
    precision: str,
    revision: str | None,
    overwrite: bool,
    safety_checker: bool,
    fast_vae: Path | None,
    deep_cache: int | None,
    clip_skip: int | None,
    as_json: bool,
) -> None:
    """Export a checkpoint and say what the bundle holds.

    Raises:
        CommandError: For every failure that a user can cause or mend.
    """
    try:
        with progress("exporting") as advance:
            bundle = _export(
                checkpoint,
                output,
                target=target,
                precision=precision,
                progress=advance,
                overwrite=overwrite,
                revision=revision,
                safety_checker=safety_checker,
                fast_vae=fast_vae,
                deep_cache=deep_cache,
                clip_skip=clip_skip,
            )
    except ImportError as exc:
        module = (exc.name or "").partition(".")[0]
        if not module or module in OURS:
            raise
        raise CommandError(
            f"export needs {module}, which is not installed", hint="pip install 'edgefill[export]'"
        ) from exc
    except OSError as exc:
        raise CommandError(f"cannot export to {output}: {reason(exc)}") from exc
    _tell(bundle, output, as_json=as_json)


def _export(
    checkpoint: str,
    output: Path,
    *,
    target: str,
    precision: str,
    progress: Advance,
    overwrite: bool,
    revision: str | None,
    safety_checker: bool,
    fast_vae: Path | None,
    deep_cache: int | None,
    clip_skip: int | None,
) -> Bundle:
    from export import ExportError, export_checkpoint

    try:
        return export_checkpoint(
            checkpoint,
            output,
            target=target,
            precision=precision,
            progress=progress,
            overwrite=overwrite,
            revision=revision,
            safety_checker=safety_checker,
            fast_vae=fast_vae,
            deep_cache=deep_cache,
            clip_skip=clip_skip,
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
