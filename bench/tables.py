"""Tables and plots from the figures that a measurement wrote.

    python -m bench.tables FILE.json ...       print the table of each
    python -m bench.tables --write             renew every section and plot of the documents

A section of README.md or bench/README.md stands between ``<!-- bench:NAME -->`` and
``<!-- /bench:NAME -->`` and is made of ``bench/results/NAME.json`` alone; its plot is
``bench/results/NAME.png``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "bench" / "results"
DOCUMENTS: Final = (ROOT / "README.md", ROOT / "bench" / "README.md")
KINDS: Final = ("compare", "interactive")

_SECTION: Final = re.compile(
    r"(?P<open><!-- bench:(?P<name>[a-z0-9-]+) -->\n).*?(?P<close><!-- /bench:(?P=name) -->)",
    re.DOTALL,
)


class TableError(Exception):
    """A file that no table can be made of; the message names it."""


def read(path: Path) -> dict[str, Any]:
    """The figures in a file.

    Raises:
        TableError: When there are none that a table can be made of.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise TableError(f"{path}: cannot be read: {exc}") from exc
    kind = found.get("kind") if isinstance(found, dict) else None
    if kind not in KINDS:
        raise TableError(f"{path}: kind is {kind!r}; allowed: {', '.join(KINDS)}")
    assert isinstance(found, dict)
    return found


def table(result: Mapping[str, Any]) -> str:
    """A markdown table of a comparison, its conditions below."""
    energy = any(row.get("energy_j") is not None for row in result["rows"])
    head = [
        "",
        "precision",
        "a picture",
        "times as fast",
        "to diffusers' picture",
        "peak memory",
        "opens in",
    ]
    if energy:
        head.append("energy")
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line(_cells(row, energy=energy)) for row in result["rows"]]
    return "\n".join([*lines, "", *_words(result)])


def section(result: Mapping[str, Any], name: str, document: Path) -> str:
    """What stands between the two marks of a document."""
    depth = len(document.resolve().relative_to(ROOT).parts) - 1
    place = "../" * depth + f"bench/results/{name}.png"
    words = "Times of the peers" if result["kind"] == "compare" else "Times of an edit"
    return f"{table(result)}\n\n![{words}, one dot a round]({place})\n"


def renew(document: Path, results: Path = RESULTS) -> str:
    """The text of a document with all its sections made anew.

    Raises:
        TableError: When a section has no figures.
    """

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        found = read(results / f"{name}.json")
        return f"{match['open']}{section(found, name, document)}{match['close']}"

    return _SECTION.sub(made, document.read_text(encoding="utf-8"))


def _cells(row: Mapping[str, Any], *, energy: bool) -> list[str]:
    title, precision = str(row["title"]), str(row["precision"])
    if row["error"] is not None:
        return [title, precision, f"failed: {_plain(row['error'])}", *[""] * (5 if energy else 4)]
    if not row.get("seconds"):
        return [title, precision, "not run", *[""] * (5 if energy else 4)]
    low, high = min(row["seconds"]), max(row["seconds"])
    cells = [
        title,
        precision,
        f"{_seconds(row['median_s'])} ({_seconds(low)} to {_seconds(high)})",
        "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        _quality(row),
        f"{row['peak_mb'] / 1e3:.2f} GB",
        _seconds(sorted(row["load_s"])[len(row["load_s"]) // 2]) if row["load_s"] else "",
    ]
    if energy:
        cells.append("" if row["energy_j"] is None else f"{row['energy_j']:.1f} J")
    return cells


def _quality(row: Mapping[str, Any]) -> str:
    quality = row["quality"]
    if row["peer"] == "diffusers":
        return "is it"
    if quality is None:
        hole = row.get("in_the_hole")
        if hole is None or hole["psnr_db"] is None:
            return "other noise"
        return f"other noise; in the hole {hole['psnr_db']:.1f} dB, SSIM {hole['ssim']:.2f}"
    return "equal" if quality["identical"] else f"{quality['psnr_db']:.1f} dB"


def _words(result: Mapping[str, Any]) -> list[str]:
    """What the figures were measured with, as one paragraph, and the remarks on the rows."""
    task, conditions = result["task"], result["conditions"]
    versions: dict[str, str] = {}
    for row in result["rows"]:
        if row["error"] is None:
            versions |= {name: version for name, version in row["versions"].items() if version}
    what = "An edit of a known picture" if task["interactive"] else "One picture"
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines = [
        f"{what}: {task['size']}, {task['steps']} steps of {task['scheduler']}, guidance "
        f"{task['guidance']:g}, {task['mask_share']:.0%} filled; checkpoint {task['checkpoint']}. "
        f"{task['threads']} threads each on {conditions['cpu']}, {conditions['cores']} cores, "
        f"{conditions['memory_gb']:g} GB, Python {conditions['python']}. {task['rounds']} rounds, "
        f"order rotated, models open: {task['models_open']}. Median (lowest to highest); times as "
        f"fast: the median of diffusers' time by the peer's within a round. {packages}. "
        f"{conditions['date']}, commit {conditions['commit']}."
    ]
    notes = [f"- {row['title']}: {row['note']}." for row in result["rows"] if row["note"]]
    return [*lines, *([""] if notes else []), *notes]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;").replace("\n", " ")


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json")
    parser.add_argument(
        "--write", action="store_true", help="renew the sections of the documents, and the plots"
    )
    chosen = parser.parse_args(arguments)
    if not chosen.files and not chosen.write:
        parser.error("name files, or --write")
    try:
        for file in chosen.files:
            print(table(read(file)))
        if chosen.write:
            _write()
    except TableError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


def _write() -> None:
    from bench.plots import draw

    for document in DOCUMENTS:
        for match in _SECTION.finditer(document.read_text(encoding="utf-8")):
            name = match["name"]
            draw(RESULTS / f"{name}.json", RESULTS / f"{name}.png")
        document.write_text(renew(document), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
