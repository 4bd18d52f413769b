"""The stages of the service, each done by itself in this process: where the overhead goes.

What is left between their sum and the overhead is the event loop, the threads' hand-overs and
HTTP itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol, TypeVar

import pybase64

from bench import material
from bench.report import median
from bench.stub import LANES, SECONDS, StubEngine
from engine import InpaintRequest
from engine.image import Grey, Rgb, encode_png
from service.decoding import PictureDecoder
from service.engine_process import EngineProcess
from service.jobs import JobStore, Limits, NewJob, default_url
from service.responses import success
from service.schema import InpaintBody, parse_json
from service.settings import Settings
from service.storage import Storage, file_name, new_prefix, open_storage

T = TypeVar("T")

LIMITS: Final = Limits(per_key=10, total=10)


def stages(repetitions: int) -> dict[str, float]:
    """Median milliseconds of each stage, in the order in which a request meets them."""
    raw = json.dumps(material.body()).encode()
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = work()
        taken.setdefault(name, []).append(time.perf_counter() - begin)
        return result

    with (
        tempfile.TemporaryDirectory(prefix="edgefill-bench-") as name,
        contextlib.closing(PictureDecoder.open(limits=Settings().picture_limits)) as decoder,
        asyncio.Runner() as runner,
        _stub() as engine,
    ):
        folder = Path(name)
        outputs = open_storage(None, folder)
        runner.run(outputs.open())
        store = JobStore.open(default_url(folder))
        try:
            for _ in range(repetitions):
                _once(raw, store, outputs, decoder, engine, runner, timed)
        finally:
            store.close()
    return {name: round(median(seconds) * 1e3, 2) for name, seconds in taken.items()}


class _Timed(Protocol):
    def __call__(self, name: str, work: Callable[[], T], /) -> T: ...


def _once(
    raw: bytes,
    store: JobStore,
    outputs: Storage,
    decoder: PictureDecoder,
    engine: EngineProcess,
    runner: asyncio.Runner,
    timed: _Timed,
) -> None:
    """One request by hand, stage after stage."""
    body = timed("parse", lambda: InpaintBody.parse(parse_json(raw)))
    document = timed("document", lambda: body.to_document(root="http://127.0.0.1"))
    prefix = new_prefix()
    new = NewJob(kind="inpaint", key="bench", request=document, file_prefix=prefix)
    job = timed("accept (on the disk)", lambda: store.accept(new, limits=LIMITS, begin=True))
    image, mask = timed(
        "decode base64",
        lambda: tuple(pybase64.b64decode(text, validate=True) for text in body.pictures.values()),
    )
    pixels, hole = timed(
        "decode pictures",
        lambda: runner.run(_decoded(decoder, image, mask)),
    )
    request = InpaintRequest(image=pixels, mask=hole, prompt=body.prompt, seed=body.seed)
    result = timed("cross to a stub and back", lambda: engine.inpaint(request))
    picture = timed("encode", lambda: encode_png(result.images[0]))
    files = {file_name(prefix, 0, "png"): picture}
    timed("store (on the disk)", lambda: runner.run(outputs.keep(files)))
    answer = timed("answer", lambda: success(body, result, identity=1, prefix=prefix, output=[]))
    timed("finish (on the disk)", lambda: store.finish(job.id, job.attempt, answer=answer))


async def _decoded(decoder: PictureDecoder, image: bytes, mask: bytes) -> tuple[Rgb, Grey]:
    pixels, hole = await asyncio.gather(
        decoder.picture(image, field="init_image"), decoder.mask(mask, field="mask_image")
    )
    return pixels, hole


@contextlib.contextmanager
def _stub() -> Iterator[EngineProcess]:
    os.environ[SECONDS], os.environ[LANES] = "0", "1"
    try:
        with EngineProcess.open(factory=f"{StubEngine.__module__}:open_engine") as engine:
            yield engine
    finally:
        del os.environ[SECONDS], os.environ[LANES]
