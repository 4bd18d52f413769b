"""Where a checkpoint comes from, a folder, a file or the hub, and what is put in it besides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.hub import fetch, is_hub_name

ORIGINAL: Final = "original"
OTHER_VAE: Final = "other_vae"
"""Folders of single files while they are worked on."""


def find_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    safety_checker: bool = True,
    work: Path | None = None,
    clip_tokenizer: str | os.PathLike[str] | None = None,
    prediction_type: str | None = None,
    vae: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Open a folder, lay a single file out as one, or fetch a name from the hub and open that.

    Args:
        source: What the caller named.
        revision: Branch, tag or commit on the hub.
        safety_checker: Look at the safety checker too.
        work: Where single files are laid out, in ``ORIGINAL`` and ``OTHER_VAE``; none is taken
            where None.
        clip_tokenizer: For a single file.
        prediction_type: For a single file.
        vae: The folder or the file of another autoencoder.

    Raises:
        ExportError: When it is none of them, or not a checkpoint that can be exported.
    """
    name = os.fspath(source)
    path = Path(name)
    here = os.path.exists(path)  # unlike Path's, this says no to a name that is too long for a path
    if here and revision is not None:
        raise ExportError(f"{name}: lies here; a revision belongs to a name on the hub")
    place = None if vae is None else _vae_folder(Path(vae), work)
    if work is not None and os.path.isfile(path):
        return _lay_out(path, work / ORIGINAL, clip_tokenizer, prediction_type, vae=place)
    for field, value in (("tokenizer", clip_tokenizer), ("prediction_type", prediction_type)):
        if value is not None:
            raise ExportError(
                f"{field} is {str(value)!r}; it belongs to a single file, {name} is none"
            )
    if os.path.isdir(path):
        return Checkpoint.open(path, safety_checker=safety_checker, vae=place)
    if here:
        raise ExportError(f"{name}: is no folder; a diffusers folder is needed")
    if isinstance(source, Path) or not is_hub_name(name):
        raise ExportError(f"{name}: does not exist, and is no name on the hub (owner/model)")
    folder, commit = fetch(name, revision=revision, safety_checker=safety_checker)
    return Checkpoint.open(
        folder, source=name, revision=commit, safety_checker=safety_checker, vae=place
    )


def adapted(
    checkpoint: Checkpoint,
    *,
    vae: str | os.PathLike[str] | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
) -> Checkpoint:
    """The checkpoint with LoRA files, and with its other autoencoder on record.

    Raises:
        ExportError: When a file is not understood, or is not for this checkpoint.
    """
    if vae is not None:
        record = {"name": Path(vae).resolve().name, "weights_sha256": checkpoint.digest("vae")}
        checkpoint = replace(checkpoint, extras={**checkpoint.extras, "vae": record})
    if loras:
        from export.lora import with_loras

        checkpoint = with_loras(checkpoint, [(Path(file), scale) for file, scale in loras])
    return checkpoint


def _vae_folder(path: Path, work: Path | None) -> Path:
    """The folder of an autoencoder; a single file is laid out as one."""
    if path.is_file() and work is not None:
        from export.original import write_vae

        return write_vae(path, work / OTHER_VAE)
    if not path.is_dir():
        raise ExportError(f"{path}: is no folder; the folder of an autoencoder, or its file")
    return path


def _lay_out(
    path: Path,
    folder: Path,
    clip_tokenizer: str | os.PathLike[str] | None,
    prediction_type: str | None,
    *,
    vae: Path | None,
) -> Checkpoint:
    """A single file as a folder."""
    from export.original import Original

    found = Original.open(path)
    found.write(
        folder,
        prediction_type=prediction_type,
        tokenizer=None if clip_tokenizer is None else Path(clip_tokenizer),
        vae=vae is None,
    )
    opened = Checkpoint.open(folder, source=path.name, safety_checker=False, vae=vae)
    return replace(opened, extras={"file_sha256": found.digest()})
