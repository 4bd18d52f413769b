"""Pictures in a folder are whole files with names that cannot be guessed; URLs of storages."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path

import pytest

from service.errors import SettingsError, StorageError
from service.settings import Settings
from service.storage import Folder, Location, ObjectStore, file_name, new_prefix, open_storage
from service.storage.base import FULL


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "not" / "yet" / "outputs"


@pytest.fixture
def outputs(place: Path) -> Folder:
    folder = Folder(place)
    assert asyncio.run(folder.trouble()) is not None
    asyncio.run(folder.open())
    return folder


def test_written_files_are_found(outputs: Folder, place: Path) -> None:
    async def steps() -> None:
        assert await outputs.trouble() is None
        for extension, content_type in (("png", "image/png"), ("base64", "text/plain")):
            names = [file_name(new_prefix(), i, extension) for i in range(4)]
            assert await outputs.response(names[0], headers={}, body=True) is None
            assert await outputs.read(names[0]) is None
            await outputs.keep({name: name.encode() for name in names})
            for name in names:
                found = await outputs.response(name, headers={"X-More": "1"}, body=True)
                assert found is not None
                assert found.headers["content-type"].startswith(content_type)
                assert found.headers["content-length"] == str(len(name))
                assert found.headers["x-more"] == "1"
                assert await outputs.read(name) == name.encode()
            await outputs.remove(names[:3])
            await outputs.remove(names[:1])
            assert [await outputs.read(name) for name in names] == [None] * 3 + [names[3].encode()]

    asyncio.run(steps())
    assert len(list(place.iterdir())) == 2


def test_prefixes_differ() -> None:
    prefixes = {new_prefix() for _ in range(1000)}
    assert len(prefixes) == 1000
    assert {len(prefix) for prefix in prefixes} == {24}


BAD_NAMES = [
    "", ".", "..", "../secret.png", "a-0.png", "a" * 24 + "-0.gif", "a" * 24 + "-0.png\n",
    "/" + "a" * 23 + "-0.png", ".." + "a" * 22 + "-0.png", "a" * 24 + "-0.png/..", ".edgefill",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_neither_found_nor_written(outputs: Folder, name: str) -> None:
    async def steps() -> None:
        assert await outputs.read(name) is None
        assert await outputs.response(name, headers={}, body=True) is None
        await outputs.remove([name])
        with pytest.raises(ValueError, match="not the name of an output"):
            await outputs.keep({name: b"picture"})

    asyncio.run(steps())


def test_a_failed_write_leaves_nothing(
    outputs: Folder, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    files = {file_name(new_prefix(), i, "png"): b"picture" for i in range(2)}
    with pytest.raises(StorageError, match="no space left") as error:
        asyncio.run(outputs.keep(files))
    assert error.value.reason == FULL
    assert list(place.iterdir()) == []


def test_pictures_are_on_the_disk_before_they_can_be_found(
    outputs: Folder, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {file_name(new_prefix(), i, "png"): b"picture" for i in range(2)}
    events: list[tuple[bool, int]] = []

    def record(descriptor: int) -> None:
        of_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append((of_folder, sum((place / name).exists() for name in files)))

    monkeypatch.setattr(os, "fsync", record)
    asyncio.run(outputs.keep(files))
    assert events == [(False, 0), (False, 1), (True, 2)]


def test_only_what_is_ours_and_old_is_swept(outputs: Folder, place: Path) -> None:
    names = [file_name(new_prefix(), 0, "png") for _ in range(2)]
    asyncio.run(outputs.keep({name: b"picture" for name in names}))
    left = place / f".{names[0]}.tmp"
    others = [place / "holiday.png", place / ".hidden.tmp", place / f"{names[0]}.orig"]
    for path in (left, *others):
        path.write_bytes(b"x")
    for path in (place / names[0], left, *others):
        os.utime(path, (1, 1))
    assert asyncio.run(outputs.sweep(time.time() - 60)) == 2
    assert set(place.iterdir()) == {place / names[1], *others}


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="not a directory"):
        asyncio.run(Folder(tmp_path / "file" / "outputs").open())


def test_urls_name_storages(tmp_path: Path) -> None:
    assert isinstance(open_storage(None, tmp_path), Folder)
    assert isinstance(open_storage("memory://tests", tmp_path), ObjectStore)
    folder = open_storage(f"file://{tmp_path}/a%20folder", tmp_path)
    asyncio.run(folder.open())
    assert [path.name for path in tmp_path.iterdir()] == ["a folder"]
    assert str(Location.parse("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert Location.parse("s3://bucket").root == "bucket"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("outputs", "must start with one of file://, s3://"),
        ("ftp://host/folder", "must start with one of file://, s3://"),
        ("simplecache::s3://bucket", "must start with one of file://, s3://"),
        ("s3://AKIASECRET:hush/hush@bucket", "must not hold credentials"),
        ("s3://bucket/prefix?key=AKIASECRET", "must not hold credentials"),
        ("s3://", "must be s3://bucket or s3://bucket/prefix"),
        ("s3:///AKIASECRET", "must be s3://bucket or s3://bucket/prefix"),
        ("s3://bucket/../AKIASECRET", "must be s3://bucket or s3://bucket/prefix"),
        ("s3://bucket//AKIASECRET", "must be s3://bucket or s3://bucket/prefix"),
        ("s3://bucket/AKIASECRET/*", "must be s3://bucket or s3://bucket/prefix"),
        ("file://relative/AKIASECRET", "must be file:///, with an absolute path"),
    ],
)
def test_bad_urls_are_refused_and_not_shown(
    url: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFILL_STORAGE_URL", url)
    with pytest.raises(SettingsError, match=f"^EDGEFILL_STORAGE_URL: .*{words}") as error:
        Settings.load()
    assert "AKIASECRET" not in str(error.value)
