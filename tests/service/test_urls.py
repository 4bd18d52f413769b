"""URLs are parsed once, and what parsers disagree on is refused."""

from __future__ import annotations

import pytest

from service.errors import FetchError
from service.urls import Target


@pytest.mark.parametrize(
    ("text", "host", "port", "authority", "path"),
    [
        ("http://example.com", "example.com", 80, "example.com", b"/"),
        ("https://Example.COM./a?b=c#d", "example.com", 443, "example.com", b"/a?b=c"),
        ("http://example.com:8080/a", "example.com", 8080, "example.com:8080", b"/a"),
        ("http://1.1.1.1/", "1.1.1.1", 80, "1.1.1.1", b"/"),
        ("http://[2606:4700::1111]:81/", "2606:4700::1111", 81, "[2606:4700::1111]:81", b"/"),
        ("http://b\u00fccher.example/", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", b"/"),
        ("http://a_b.example/\u00e9", "a_b.example", 80, "a_b.example", b"/%C3%A9"),
    ],
)
def test_parse(text: str, host: str, port: int, authority: str, path: bytes) -> None:
    target = Target.parse(text)
    assert (target.host, target.port, target.authority, target.path) == (
        host,
        port,
        authority,
        path,
    )


@pytest.mark.parametrize(
    "text",
    [
        "http://",
        "http:///path",
        "http://user:secret@example.com/",
        "http://user@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://exa mple.com/",
        "http://example.com/\r\nHost: other",
        "http://example.com/\x00",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://1.2.3.4.5/",
        "http://[::1%25lo]/",
        "http://[::g]/",
        "http://example.com/" + "a" * 2048,
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "example.com",
        "",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(FetchError):
        Target.parse(text)


def test_a_redirect_is_joined_and_parsed_anew() -> None:
    target = Target.parse("https://example.com/a/b")
    assert target.redirected("../c").url == "https://example.com/c"
    assert target.redirected("//other.example/d").host == "other.example"
    for location in ("http://example.com/a", "ftp://example.com/", "https://0x7f.1/", "https://["):
        with pytest.raises(FetchError):
            target.redirected(location)
