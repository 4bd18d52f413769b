"""An S3 server on loopback, which can go away and come back."""

from __future__ import annotations

import contextlib
import importlib.util
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.storage.objects import OPTIONS

NEEDED = ("s3fs", "moto", "boto3", "flask", "flask_cors")


@dataclass
class S3:
    """A running S3 and a bucket in it, named anew for every test."""

    port: int = 0
    bucket: str = field(default_factory=lambda: f"pictures-{uuid.uuid4().hex}")
    _server: Any = None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/some/prefix"

    def start(self) -> None:
        """Listen, on the same port as before."""
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """Refuse every connection; the objects stay."""
        self._server.stop()

    def client(self) -> contextlib.closing[Any]:
        """A client of boto3, to look from outside."""
        import boto3

        return contextlib.closing(boto3.client("s3", region_name="us-east-1"))

    def names(self) -> list[str]:
        """The keys of the bucket."""
        with self.client() as client:
            return [found["Key"] for found in self.objects(client)]

    def objects(self, client: Any) -> list[dict[str, Any]]:
        """What the bucket lists."""
        return list(client.list_objects_v2(Bucket=self.bucket).get("Contents", []))


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Serve S3, and point the usual variables at it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the test extra; missing: {', '.join(missing)}")
    s3 = S3()
    s3.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{s3.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    once = {"connect_timeout": 3, "read_timeout": 15, "retries": {"total_max_attempts": 1}}
    monkeypatch.setitem(OPTIONS, "s3", {"config_kwargs": once})  # the driver's pauses are long
    try:
        with s3.client() as client:
            client.create_bucket(Bucket=s3.bucket)
        yield s3
    finally:
        s3.stop()
