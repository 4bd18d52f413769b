"""Pictures in an object store: in memory, and in S3 on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from starlette.responses import StreamingResponse

from service.cli import main
from service.errors import StorageError
from service.storage import Location, ObjectStore, file_name, new_prefix, objects
from service.storage.base import FULL, UNUSABLE
from tests.service.bucket import S3, s3_server
from tests.service.stub_engine import StubEngine

Steps = Callable[[ObjectStore], Awaitable[None]]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server(monkeypatch) as server:
        yield server


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3").url)
    return f"memory://{new_prefix()}/prefix"


def run(url: str, steps: Steps) -> None:
    """Do steps with an open store."""

    async def whole() -> None:
        store = ObjectStore(Location.parse(url))
        await store.open()
        try:
            await steps(store)
        finally:
            await store.close()

    asyncio.run(whole())


def test_written_objects_are_found(url: str) -> None:
    async def steps(store: ObjectStore) -> None:
        assert await store.trouble() is None
        for extension, content_type in (("png", "image/png"), ("base64", "text/plain")):
            names = [file_name(new_prefix(), i, extension) for i in range(4)]
            assert await store.response(names[0], headers={}, body=True) is None
            assert await store.read(names[0]) is None
            await store.keep({name: name.encode() for name in names})
            await store.keep({names[0]: names[0].encode()})
            for body in (True, False):
                found = await store.response(names[0], headers={"X-More": "1"}, body=body)
                assert found is not None
                assert found.body == (names[0].encode() if body else b"")
                assert found.headers["content-type"].startswith(content_type)
                assert found.headers["content-length"] == str(len(names[0]))
                assert found.headers["last-modified"].endswith(" GMT")
                assert found.headers["etag"].startswith('"')
                assert found.headers["x-more"] == "1"
            assert await store.read(names[1]) == names[1].encode()
            await store.remove(names[:3])
            await store.remove(names[:1])
            kept = [await store.read(name) for name in names]
            assert kept == [None] * 3 + [names[3].encode()]

    run(url, steps)


def test_large_objects_are_sent_in_pieces(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PIECE", 1000)
    name = file_name(new_prefix(), 0, "png")
    data = bytes(i % 251 for i in range(2500))

    async def steps(store: ObjectStore) -> None:
        await store.keep({name: data})
        found = await store.response(name, headers={}, body=True)
        assert isinstance(found, StreamingResponse)
        assert found.headers["content-length"] == "2500"
        pieces = [bytes(piece) async for piece in found.body_iterator]  # type: ignore[arg-type]
        assert [len(piece) for piece in pieces] == [1000, 1000, 500]
        assert b"".join(pieces) == data
        assert await store.read(name) == data

    run(url, steps)


@pytest.mark.parametrize("name", ["", "..", "a-0.png", "a" * 24 + "-0.png/..", ".edgefill"])
def test_other_names_are_neither_found_nor_written(name: str) -> None:
    async def steps(store: ObjectStore) -> None:
        assert await store.read(name) is None
        assert await store.response(name, headers={}, body=True) is None
        await store.remove([name])
        with pytest.raises(ValueError, match="not the name of an output"):
            await store.keep({name: b"picture"})

    run("memory://names", steps)


def test_only_what_is_old_is_swept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {new_prefix()[0] for _ in range(5000)} == set(objects.FIRST_LETTERS)
    monkeypatch.setattr(objects, "FIRST_LETTERS", "aZ0_-")
    names = [file_name(first + new_prefix()[1:], 0, "png") for first in "aZ0_-"]

    async def steps(store: ObjectStore) -> None:
        assert await store.sweep(time.time()) == 0
        await store.keep({name: b"picture" for name in names})
        assert await store.sweep(time.time() - 60) == 0
        assert await store.sweep(time.time() + 60) == len(names)
        assert [await store.read(name) for name in names] == [None] * len(names)
        assert await store.sweep(time.time() + 60) == 0

    run(url, steps)


def test_other_objects_are_left_alone(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "FIRST_LETTERS", "ahd")
    name = file_name("a" * 24, 0, "png")
    others = {"holiday.png", "some/prefix/holiday.png", f"some/prefix/deeper/{name}",
              f"some/prefix-of-another/{name}", "some/prefix/.edgefill"}  # fmt: skip
    with s3.client() as client:
        for key in others:
            client.put_object(Bucket=s3.bucket, Key=key, Body=b"x")

    async def steps(store: ObjectStore) -> None:
        await store.keep({name: b"picture"})
        assert f"some/prefix/{name}" in s3.names()
        assert await store.sweep(time.time() + 60) == 1

    run(s3.url, steps)
    assert set(s3.names()) == others


def test_the_store_is_looked_at_now_and_then_and_not_written(s3: S3) -> None:
    now = 0.0

    async def steps() -> None:
        nonlocal now
        store = ObjectStore(Location.parse(s3.url), clock=lambda: now)
        await store.open()
        with s3.client() as client:
            written = s3.objects(client)
            now += objects.PROBE_EVERY
            assert await store.trouble() is None
            assert s3.objects(client) == written
            client.delete_object(Bucket=s3.bucket, Key=written[0]["Key"])
        now += objects.PROBE_EVERY
        assert await store.trouble() is None
        assert s3.names() == ["some/prefix/.edgefill"]
        s3.stop()
        assert await store.trouble() is None  # as it was, for some seconds
        now += objects.PROBE_EVERY
        assert await store.trouble() == UNUSABLE
        s3.start()
        now += objects.PROBE_EVERY
        assert await store.trouble() == UNUSABLE  # nobody waits for a store in trouble
        while await store.trouble() is not None:
            await asyncio.sleep(0.01)
        await store.close()

    asyncio.run(steps())


def test_failed_writes_are_tried_again(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAUSES", (0.01, 0.01))
    name = file_name(new_prefix(), 0, "png")

    async def steps(store: ObjectStore) -> None:
        s3.stop()
        with pytest.raises(StorageError, match="s3://.*Could not connect") as error:
            await store.keep({name: b"picture"})
        assert error.value.reason == UNUSABLE
        assert await store.trouble() == UNUSABLE
        with pytest.raises(StorageError):
            await store.read(name)
        monkeypatch.setattr(objects, "PAUSES", (0.01,) * 100)
        writing = asyncio.create_task(store.keep({name: b"picture"}))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(s3.start)
        await writing
        assert await store.trouble() is None
        assert await store.read(name) == b"picture"

    run(s3.url, steps)


def test_a_bucket_that_goes_is_not_asked_again(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAUSES", (60.0,))

    async def steps(store: ObjectStore) -> None:
        with s3.client() as client:
            client.delete_object(Bucket=s3.bucket, Key="some/prefix/.edgefill")
            client.delete_bucket(Bucket=s3.bucket)
        with pytest.raises(StorageError, match="The specified bucket does not exist"):
            await store.keep({file_name(new_prefix(), 0, "png"): b"picture"})

    run(s3.url, steps)


def test_a_full_disk_is_trouble_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps() -> None:
        store = ObjectStore(Location.parse("memory://disk"), disks=[tmp_path / "no", tmp_path])
        await store.open()
        assert await store.trouble() is None
        monkeypatch.setattr("service.storage.base.RESERVE", 2**60)
        assert await store.trouble() == FULL
        await store.close()

    asyncio.run(steps())


@pytest.mark.parametrize("why", ["no bucket", "no server", "no driver", "not allowed"])
def test_serve_says_why_it_cannot_start(
    why: str, s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.engine_process.EngineProcess", StubEngine)
    monkeypatch.setattr(StubEngine, "open", lambda *_, **__: pytest.fail("the engine was opened"))
    url, words = f"{s3.url}", ""
    if why == "no bucket":
        url, words = "s3://nobody-has-this/prefix", "The specified bucket does not exist"
    elif why == "no server":
        s3.stop()
        words = "Could not connect to the endpoint URL"
    elif why == "no driver":

        def missing(scheme: str) -> None:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
        words = "the driver of s3:// is not installed: pip install 'edgefill[s3]'"
    else:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        words = "Unable to locate credentials"
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("EDGEFILL_STORAGE_URL", url)
    assert main(["serve", "--port", "0"]) == 1
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith(f"error: cannot keep pictures in {url}: ")
    assert words in error
    assert hint.startswith("hint: EDGEFILL_STORAGE_URL says where")
    if why == "no server":
        s3.start()
