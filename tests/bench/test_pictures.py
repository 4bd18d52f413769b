"""Damaged pictures: none gets through, and the harness sees what it is there to see."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import picture_mutations, pictures
from engine.image import decode_mask, decode_picture
from tests.service.decoding import poison

CASES = int(os.environ.get("EDGEFILL_TEST_PICTURES", "2000"))


def test_damaged_pictures_end_no_process_and_leak_nothing() -> None:
    report = pictures.run(seed=1, count=CASES)
    assert report.findings == []
    assert report.wrong == 0
    assert report.decoded + report.refused == report.cases == CASES
    assert report.decoded > CASES // 10  # the damage goes deep
    assert report.peak_bytes < 200_000_000
    every = {*picture_mutations.PNG_MUTATIONS, *picture_mutations.JPEG_MUTATIONS}
    assert {way.__name__ for way in every} <= report.ways.keys()


def test_the_corpus_is_whole() -> None:
    """What is damaged was sound, or the run would say little."""
    whole = pictures.corpus()
    assert len(whole) >= 50
    for data in whole:
        assert decode_picture(data).shape[:2] == decode_mask(data).shape


def test_a_case_is_the_same_in_every_run() -> None:
    assert [*pictures.cases(5, 0, 40)][30:] == [*pictures.cases(5, 30, 40)]
    assert [*pictures.cases(5, 0, 40)] != [*pictures.cases(6, 0, 40)]


def test_what_goes_wrong_is_counted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.RandomState(11).randint(0, 256, (64, 64, 3)).astype(np.uint16)
    leak = pictures.png(noise[20:30], depth=8, colour=pictures.RGB)

    def poisoned(seed: int, start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
        yield from enumerate_ways(b"crash", b"raise", b"lie", leak, b"damage")

    monkeypatch.setattr("service.decoding.worker._BOOT", poison.BOOT)
    monkeypatch.setattr(pictures, "cases", poisoned)
    written = tmp_path / "report.json"
    arguments = ["--cases", "5", "--seed", "3", "--keep", str(tmp_path), "--json", str(written)]
    assert pictures.main(arguments) == 1
    report = json.loads(written.read_text())
    counted = {name: report[name] for name in ("crashed", "failed", "lied", "leaked", "refused")}
    assert counted == {"crashed": 1, "failed": 1, "lied": 1, "leaked": 1, "refused": 1}
    assert (tmp_path / "3-3.bin").read_bytes() == leak
    assert "processes that crashed            1" in capsys.readouterr().out


def enumerate_ways(*data: bytes) -> Iterator[tuple[int, str, bytes]]:
    for number, picture in enumerate(data):
        yield number, "poison", picture
