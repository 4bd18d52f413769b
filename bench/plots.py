"""One plot of a comparison: a bar for each peer, a dot for each round. Needs matplotlib."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

OURS: Final = "#c2410c"
THEIRS: Final = "#94a3b8"
SOURCE: Final = "Source"
"""PNG text chunk with the SHA-256 of the figures that were drawn."""


def fingerprint(figures: Path) -> str:
    """SHA-256 of what a file of figures says, whatever its spaces."""
    text = json.dumps(json.loads(figures.read_text(encoding="utf-8")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def draw(figures: Path, output: Path) -> None:
    """Draw a comparison as a PNG.

    Args:
        figures: What ``edgefill bench compare --json`` wrote.
        output: The picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    result: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    rows = [row for row in result["rows"] if row["error"] is None and row.get("seconds")]
    rows.sort(key=lambda row: -row["median_s"])
    figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = [OURS if row["peer"].startswith("edgefill") else THEIRS for row in rows]
    axes.barh(range(len(rows)), [row["median_s"] for row in rows], color=colours, height=0.62)
    for place, row in enumerate(rows):
        axes.plot(row["seconds"], [place] * len(row["seconds"]), ".", color="black", markersize=4)
        ratio = "" if row["ratio"] is None else f"  {row['ratio']:.2f}x"
        axes.text(max(row["seconds"]), place, ratio, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    task = result["task"]
    axes.set_xlabel(
        f"seconds a picture: {task['size']}, {task['steps']} steps of {task['scheduler']}, "
        f"{task['threads']} threads"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, metadata={SOURCE: fingerprint(figures), "Software": None})
