"""Pictures as URL, data URI or base64."""

from __future__ import annotations

import asyncio
import base64

import pytest

from service.errors import ApiError, FetchError
from service.inputs import PictureReader, summary

PAYLOAD = bytes(range(256))
WRONG_KIND = "The init image must be an http or https URL, a data URI, or base64."
TEXT = base64.b64encode(PAYLOAD).decode()


class FakeFetcher:
    async def fetch(self, url: str, *, owner: str = "") -> bytes:
        if "missing" in url:
            raise FetchError("10.0.0.1 refused the connection on port 22")
        return url.encode()


def read(value: str, *, max_bytes: int = 1000) -> bytes:
    reader = PictureReader(FakeFetcher(), max_bytes=max_bytes)
    return asyncio.run(reader.read("init_image", value))


@pytest.mark.parametrize(
    "value",
    [
        TEXT,
        f"  {TEXT}\n",
        "\r\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)),
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/jpeg;charset=x;BASE64, {TEXT}",
        f"data:;base64,{TEXT}",
        TEXT.rstrip("="),
        "data:image/png;base64," + TEXT.replace("+", "%2B").replace("=", "%3D"),
    ],
)
def test_base64_is_decoded(value: str) -> None:
    assert read(value) == PAYLOAD


def test_urls_are_fetched() -> None:
    assert read(" https://a.example/b.png ") == b"https://a.example/b.png"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://missing.example/", "The init image could not be fetched from its URL."),
        ("ftp://a.example/b.png", WRONG_KIND),
        ("file:///etc/passwd", WRONG_KIND),
        ("data:image/png,%89PNG", "The init image is a data URI without base64."),
        ("data:image/png;base64", "The init image is a data URI without base64."),
        ("/etc/passwd!", "The init image is not valid base64."),
        ("cat.png", "The init image is not valid base64."),
        ("QUJDR", "The init image is not valid base64."),
        ("QUI=QUI=", "The init image is not valid base64."),
        ("Q_J-", "The init image is not valid base64."),
        ("\u0661\u0662\u0663\u0664", "The init image is not valid base64."),
        (base64.b64encode(bytes(1003)).decode(), "The init image is larger than 0.001 MB."),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(value: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(value)
    assert (caught.value.status, caught.value.message) == (400, message)


def test_answers_show_urls_and_digests_never_payloads() -> None:
    assert summary(" https://a.example/b.png") == "https://a.example/b.png"
    assert summary(TEXT) == "sha256:" + summary(TEXT)[7:]
    assert len(summary(f"data:image/png;base64,{TEXT}")) == 23
