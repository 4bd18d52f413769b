"""Makes the bundle that ships with Edgefill from a checkpoint of our own.

    python -m export.default_bundle CHECKPOINT --photos PHOTOS.json [--output DIR]

The bundle goes to ``engine/default_bundle``, its licence notes beside the model. ``PHOTOS.json``
lists the photographs the checkpoint was trained on (``file``, ``licence``, and where known
``author`` and ``source``); those that ask for it are credited.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from engine.bundle import Bundle
from export.errors import ExportError
from export.exporter import Progress, export_checkpoint

OUTPUT: Final = Path(__file__).resolve().parents[1] / "engine" / "default_bundle"
DOCUMENT: Final = "LICENSE-MODEL.md"

# What contact sheets show: trained last at 128 pixels, larger ones fall apart into texture; objects
# fill most of the frame, as in training; 8 steps are as good as 25, guidance 1 is washed out and 5
# over-saturated.
SIZE: Final = 128
MAX_SIZE: Final = 128
CONTEXT: Final = 0.15
STEPS: Final = 8
GUIDANCE: Final = 3.0

_COMMONS: Final = "https://commons.wikimedia.org/wiki/File:"
_FLICKR: Final = "https://www.flickr.com/photos/"
_KNOWN: Final = {
    "gcompris__animals__crocodile": (
        "Kmanoj",
        f"{_COMMONS}Marsh_Crocodiles_basking_in_the_sun.JPG",
    ),
    "gcompris__animals__panda": ("Aaron Logan", f"{_COMMONS}Lightmatter_panda.jpg"),
    "gcompris__animals__moose": ("Ryan Hagerty", f"{_COMMONS}Male_Moose.jpg"),
    "sklearn__china": ("danielbuechele", f"{_FLICKR}danielbuechele/6061409035/"),
    "sklearn__flower": ("vultilion", f"{_FLICKR}vultilion/6056698931/"),
}
"""Authors that the manifest leaves out, from the notes of GCompris and scikit-learn."""

_LOMIRI: Final = {
    "freespace": ('Trevor "Freespace"', "CC-BY-4.0"),
    "Clements Engelhardt": ("Clemens Engelhardt", "CC0-1.0"),
}
"""By the package's copyright file, where it differs from the file's name or from CC-BY-4.0."""

_NOTES: Final = """\
# Licence of the model

The weights in this folder are licensed under the Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0). They were trained from scratch by the Edgefill
authors on pictures of the sources below; none of those pictures is part of this folder.

## Notices

- Fluent Emoji (c) Microsoft Corporation, MIT
- Noto Emoji (c) Google, Apache-2.0
- Open Clip Art Library 0.18, public domain
- emojibase-data (c) 2017-2019 Miles Johnson, MIT; names from Unicode CLDR
- OpenCV sample pictures (c) OpenCV team and contributors, Apache-2.0
- Byte-pair merges of the tokenizer: CLIP (c) 2021 OpenAI, MIT

## Photographs

"""


def licence_notes(photos: Path) -> str:
    """The licence document, with a line for every photograph of a manifest that asks for credit."""
    lines = []
    for photo in json.loads(photos.read_bytes()):
        if photo["licence"] == "Apache-2.0":
            continue
        name = Path(photo["file"]).stem
        author, source = _KNOWN.get(name, (photo.get("author"), photo.get("source")))
        title = name.rpartition("__")[2]
        licence = photo["licence"]
        if name.startswith("lomiri__"):
            words, _, author = title.replace("_", " ").rpartition(" by ")
            title, source = words, "lomiri-wallpapers"
            author, licence = _LOMIRI.get(author, (author, "CC-BY-4.0"))
        parts = [f'"{title}"', author, licence, source]
        lines.append("- " + ", ".join(part for part in parts if part))
    return _NOTES + "\n".join(lines) + "\n"


def make_default_bundle(
    checkpoint: Path, photos: Path, output: Path = OUTPUT, *, progress: Progress | None = None
) -> Bundle:
    """Export the default model with its defaults and licence notes.

    Raises:
        ExportError: When the checkpoint or the manifest cannot be read.
    """
    try:
        notes = licence_notes(photos)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ExportError(f"{photos}: is not a manifest of photographs: {exc!r}") from exc
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / DOCUMENT
        document.write_text(notes, encoding="utf-8")
        return export_checkpoint(
            checkpoint,
            output,
            overwrite=True,
            progress=progress,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            size=SIZE,
            max_size=MAX_SIZE,
            context=CONTEXT,
            licence={"id": "Apache-2.0", "source": DOCUMENT},
            documents=[document],
        )


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m export.default_bundle", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    chosen = parser.parse_args(arguments)

    def progress(stage: str, index: int, total: int) -> None:
        print(f"[{index}/{total}] {stage}", file=sys.stderr)

    try:
        bundle = make_default_bundle(
            chosen.checkpoint, chosen.photos, chosen.output, progress=progress
        )
    except ExportError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(sum(record.size for record in bundle.files()), "bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
