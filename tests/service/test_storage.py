"""Outputs are whole files with names that cannot be guessed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.storage import OutputFolder, file_name, new_prefix


@pytest.fixture
def outputs(tmp_path: Path) -> OutputFolder:
    folder = OutputFolder(tmp_path / "not" / "yet")
    assert not folder.writable()
    folder.open()
    return folder


def test_written_files_are_found(outputs: OutputFolder) -> None:
    assert outputs.writable()
    for extension, content_type in (("png", "image/png"), ("jpg", "image/jpeg")):
        name = file_name(new_prefix(), 3, extension)
        assert outputs.find(name) is None
        outputs.write(name, b"picture")
        found = outputs.find(name)
        assert found is not None
        assert found[0].read_bytes() == b"picture"
        assert found[1] == content_type


def test_prefixes_differ() -> None:
    prefixes = {new_prefix() for _ in range(1000)}
    assert len(prefixes) == 1000
    assert {len(prefix) for prefix in prefixes} == {24}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../secret.png", "a-0.png", "a" * 24 + "-0.gif", "a" * 24 + "-0.png\n",
             "/" + "a" * 23 + "-0.png", ".." + "a" * 22 + "-0.png", "a" * 24 + "-0.png/.."]
)  # fmt: skip
def test_other_names_are_neither_found_nor_written(outputs: OutputFolder, name: str) -> None:
    assert outputs.find(name) is None
    with pytest.raises(ValueError, match="not the name of an output"):
        outputs.write(name, b"picture")


def test_a_failed_write_leaves_nothing(
    outputs: OutputFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    name = file_name(new_prefix(), 0, "png")
    with pytest.raises(OSError, match="No space left"):
        outputs.write(name, b"picture")
    assert outputs.find(name) is None
    assert list((tmp_path / "not" / "yet" / "outputs").iterdir()) == []
