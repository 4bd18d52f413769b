"""Tables and plots say what the figures say, and the documents' are those of the committed ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from bench import tables
from bench.plots import SOURCE, draw, fingerprint

SECTIONS = [
    (document, match["name"])
    for document in tables.DOCUMENTS
    for match in tables._SECTION.finditer(document.read_text(encoding="utf-8"))
]


def figures(**changes: Any) -> dict[str, Any]:
    row = {
        "peer": "diffusers",
        "title": "diffusers, eager",
        "precision": "float32",
        "error": None,
        "note": "",
        "versions": {"torch": "2.13.0", "accelerate": None},
        "load_s": [3.0, 1.0, 2.0],
        "seconds": [0.5, 1.25, 2.0],
        "median_s": 1.25,
        "ratio": 1.0,
        "peak_mb": 5123.4,
        "energy_j": None,
        "quality": {"psnr_db": None, "identical": True},
    }
    ours = {"peer": "edgefill", "title": "Edgefill", "ratio": 1.5, "note": "keeps every pixel"}
    ours |= {"quality": {"psnr_db": 71.23, "identical": False}}
    failed = {"peer": "sdcpp", "title": "sd.cpp", "error": "cmake: no | compiler", "note": ""}
    failed |= {"precision": "float16"}
    own = {"peer": "openvino", "title": "OpenVINO", "quality": None}
    task = {"size": "512x512", "steps": 4, "scheduler": "lcm", "guidance": 1.0, "threads": 2}
    task |= {"rounds": 3, "models_open": "one at a time", "mask_share": 0.31, "checkpoint": "sd15"}
    return {
        "kind": "compare",
        "conditions": {
            "cpu": "Fast One",
            "cores": 2,
            "memory_gb": 25.3,
            "python": "3.11.7",
            "date": "2026-11-24 09:28 UTC",
            "commit": "500d66f",
        },
        "task": task | {"interactive": False},
        "rows": [row, row | ours | changes, row | own, failed],
    }


def test_a_table() -> None:
    lines = tables.table(figures()).splitlines()
    assert lines[:6] == [
        "|  | precision | a picture | times as fast | to diffusers' picture | peak memory "
        "| opens in |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| diffusers, eager | float32 | 1.2 s (500 ms to 2.0 s) | 1.00 | is it | 5.12 GB | 2.0 s |",
        "| Edgefill | float32 | 1.2 s (500 ms to 2.0 s) | 1.50 | 71.2 dB | 5.12 GB | 2.0 s |",
        "| OpenVINO | float32 | 1.2 s (500 ms to 2.0 s) | 1.00 | other noise | 5.12 GB | 2.0 s |",
        "| sd.cpp | float16 | failed: cmake: no / compiler |  |  |  |  |",
    ]
    assert "31% filled; checkpoint sd15. 2 threads each on Fast One" in lines[7]
    assert "torch 2.13.0. 2026-11-24 09:28 UTC, commit 500d66f." in lines[7]
    assert lines[8:] == ["", "- Edgefill: keeps every pixel."]


def test_energy_has_a_column_where_it_is_known() -> None:
    lines = tables.table(figures(energy_j=12.34)).splitlines()
    assert lines[0].endswith("| opens in | energy |")
    assert lines[3].endswith("| 12.3 J |")
    assert lines[2].endswith("| 2.0 s |  |")
    assert {line.count("|") for line in lines[:6]} == {9}


def test_a_document_is_renewed_and_its_words_are_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(figures()))
    document = tables.ROOT / "bench" / "README.md"
    text = "before\n<!-- bench:mine -->\nold\n<!-- /bench:mine -->\nafter\n"
    file = tmp_path / "d.md"
    file.write_text(text)
    section = tables.section(figures(), "mine", document)
    assert section.endswith("(../bench/results/mine.png)\n")
    found = tables._SECTION.sub(lambda m: f"{m['open']}{section}{m['close']}", text)
    assert found.startswith("before\n<!-- bench:mine -->\n|  | precision")
    assert found.endswith("\n<!-- /bench:mine -->\nafter\n")
    assert "old" not in found


@pytest.mark.parametrize(("document", "name"), SECTIONS, ids=lambda part: str(part)[-30:])
def test_the_documents_show_the_committed_figures(document: Path, name: str) -> None:
    assert document.read_text(encoding="utf-8") == tables.renew(document)
    drawn = texts(tables.RESULTS / f"{name}.png").get(SOURCE)
    assert drawn == fingerprint(tables.RESULTS / f"{name}.json"), "python -m bench.tables --write"


def test_a_plot_knows_its_figures(tmp_path: Path) -> None:
    source, plot = tmp_path / "f.json", tmp_path / "f.png"
    source.write_text(json.dumps(figures()))
    draw(source, plot)
    assert texts(plot)[SOURCE] == fingerprint(source)
    assert plot.stat().st_size < 60_000
    source.write_text(json.dumps(figures(), indent=3))
    assert texts(plot)[SOURCE] == fingerprint(source)
    source.write_text(json.dumps(figures(median_s=1.26)))
    assert texts(plot)[SOURCE] != fingerprint(source)


def test_files_without_figures_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.json"
    assert tables.main([str(file)]) == 1
    file.write_text('{"kind": "dance"}')
    assert tables.main([str(file)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {file}: cannot be read: ")
    assert second == f"error: {file}: kind is 'dance'; allowed: compare, interactive"
    file.write_text(json.dumps(figures()))
    assert tables.main([str(file)]) == 0
    assert capsys.readouterr().out == tables.table(figures()) + "\n"


def texts(png: Path) -> dict[str, str]:
    """The tEXt chunks of a PNG."""
    data, place, found = png.read_bytes(), 8, {}
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        if kind == b"tEXt":
            name, _, text = body.partition(b"\0")
            found[name.decode()] = text.decode("latin-1")
        place += 12 + length
    return found
