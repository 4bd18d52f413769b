"""The decoding processes: what they may not do, how they die, and that others do not notice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import InputError
from engine.header import PictureLimits
from service.app import create_app
from service.decoding import PictureDecoder
from service.decoding.confine import DESCRIPTORS
from service.errors import ApiError
from service.settings import Settings
from tests.service.decoding import poison
from tests.service.decoding.hostile import PNG, SMOOTH, flat, zeros
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

UNDECODABLE = "could not be decoded"


@pytest.fixture(scope="module")
def poisoned(limits: PictureLimits) -> Iterator[PictureDecoder]:
    """One process, and those that replace it, which do as their pictures say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.decoding.worker._BOOT", poison.BOOT)
        opened = PictureDecoder.open(limits=limits, workers=1)
        yield opened
        opened.close()


def pid(decoder: PictureDecoder, seat: int = 0) -> int:
    worker = decoder._seats[seat]._worker
    assert worker is not None
    return worker.pid


def status(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def picture(
    decoder: PictureDecoder, data: bytes
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return asyncio.run(decoder.picture(data, field="init_image"))


@pytest.mark.parametrize("word", ["crash", "exit", "fill", "raise", "lie", "spin"])
def test_a_lost_process_costs_its_picture_only(
    poisoned: PictureDecoder, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if word == "spin":
        monkeypatch.setattr(poisoned._seats[0], "_seconds", 0.2)
    before = pid(poisoned)
    with pytest.raises(InputError, match=UNDECODABLE) as caught:
        picture(poisoned, word.encode())
    assert caught.value.field == "init_image"
    monkeypatch.undo()
    assert np.array_equal(picture(poisoned, PNG), SMOOTH)
    assert pid(poisoned) != before
    assert not Path(f"/proc/{before}").exists()


def test_a_crash_between_other_pictures(poisoned: PictureDecoder) -> None:
    async def together() -> list[object]:
        pictures = [b"crash" if i % 4 == 1 else PNG for i in range(8)]
        return await asyncio.gather(
            *(poisoned.picture(data, field="init_image") for data in pictures),
            return_exceptions=True,
        )

    for i, outcome in enumerate(asyncio.run(together())):
        if i % 4 == 1:
            assert isinstance(outcome, InputError)
        else:
            assert isinstance(outcome, np.ndarray)
            assert np.array_equal(outcome, SMOOTH)


@pytest.mark.parametrize("word", ["open", "connect", "fork", "write", "kill", "limit"])
def test_what_a_process_may_not_do(poisoned: PictureDecoder, word: str) -> None:
    assert np.array_equal(picture(poisoned, word.encode() + b" " + PNG), SMOOTH)


def test_processor_time_is_bounded(poisoned: PictureDecoder) -> None:
    """The process sets its own bound before each picture; it is the kernel that ends it."""
    with pytest.raises(InputError, match=UNDECODABLE):
        picture(poisoned, b"work")
    assert np.array_equal(picture(poisoned, PNG), SMOOTH)


def test_a_process_has_nothing(decoder: PictureDecoder) -> None:
    for seat in (0, 1):
        process = pid(decoder, seat)
        said = status(process)
        assert (said["NoNewPrivs"], said["Seccomp"], said["Threads"]) == ("1", "2", "1")
        assert said["Uid"].split()[0] == ("65534" if os.geteuid() == 0 else str(os.getuid()))
        assert {line.split()[3] for line in limit_lines(process, "Max open files")} == {
            str(DESCRIPTORS)
        }
        assert [line.split()[3] for line in limit_lines(process, "Max address space")] == [
            str((1 << 30) + 20 * 25_000_000)
        ]
        if os.geteuid() == 0:
            open_files = sorted(Path(f"/proc/{process}/fd").iterdir())
            assert [path.name for path in open_files] == ["0", "1", "2", "3"]
            environment = Path(f"/proc/{process}/environ").read_bytes()
            assert b"EDGEFILL" not in environment
            assert b"HOME=" not in environment


def limit_lines(process: int, name: str) -> list[str]:
    lines = Path(f"/proc/{process}/limits").read_text().splitlines()
    return [line for line in lines if line.startswith(name)]


def test_a_process_that_was_killed_while_it_waited(limits: PictureLimits) -> None:
    """The kernel may choose it when memory runs out; the next picture does not pay for that."""
    decoder = PictureDecoder.open(limits=limits, workers=1)
    os.kill(pid(decoder), signal.SIGKILL)
    os.waitid(os.P_PID, pid(decoder), os.WEXITED | os.WNOWAIT)
    assert np.array_equal(picture(decoder, PNG), SMOOTH)
    decoder.close()


def test_no_process_can_be_started(limits: PictureLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = PictureDecoder.open(limits=limits, workers=1)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    os.kill(pid(decoder), signal.SIGKILL)
    os.waitid(os.P_PID, pid(decoder), os.WEXITED | os.WNOWAIT)
    with pytest.raises(ApiError) as caught:
        picture(decoder, PNG)
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
    with pytest.raises(OSError, match="/nowhere/python"):
        PictureDecoder.open(limits=limits)
    monkeypatch.undo()
    assert np.array_equal(picture(decoder, PNG), SMOOTH)
    decoder.close()


def test_many_large_pictures_take_turns(decoder: PictureDecoder) -> None:
    """Six of the largest, at once: two are decoded at a time, and all of them are."""
    largest = flat(6250, 4000, zeros(6251 * 4000))

    async def all_at_once() -> list[tuple[int, ...]]:
        masks = [decoder.mask(largest, field="mask_image") for _ in range(6)]
        return [mask.shape for mask in await asyncio.gather(*masks)]

    assert asyncio.run(all_at_once()) == [(4000, 6250)] * 6
    for seat in (0, 1):
        assert int(status(pid(decoder, seat))["VmPeak"].split()[0]) < 1_600_000


def test_no_process_is_left(limits: PictureLimits) -> None:
    decoder = PictureDecoder.open(limits=limits)
    both = [pid(decoder, 0), pid(decoder, 1)]
    decoder.close()
    assert not any(Path(f"/proc/{process}").exists() for process in both)


def test_a_picture_that_nobody_waits_for_is_not_decoded(poisoned: PictureDecoder) -> None:
    async def leave() -> None:
        slow = asyncio.ensure_future(poisoned.picture(b"sleep " + PNG, field="init_image"))
        waiting = asyncio.ensure_future(poisoned.picture(b"crash", field="init_image"))
        await asyncio.sleep(0)
        waiting.cancel()
        assert np.array_equal(await slow, SMOOTH)

    before = pid(poisoned)
    asyncio.run(leave())
    assert np.array_equal(picture(poisoned, PNG), SMOOTH)
    assert pid(poisoned) == before


def test_a_decoder_that_was_given_to_the_application_is_not_closed_by_it(
    decoder: PictureDecoder, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, _env_file=None)
    with serving(create_app(settings, StubEngine(), decoder=decoder)) as client:
        assert client.get("/readyz").status_code == 200
    assert all(seat.is_alive() for seat in decoder._seats)
    assert picture(decoder, PNG).shape == SMOOTH.shape
