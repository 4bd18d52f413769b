"""Fetching by name, against a stand-in for the hub on the loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from export.hub import is_hub_name, wanted

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.export

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "c0ffee" + "0" * 34
MODEL = "somebody/inpainting"
DEAD = "http://127.0.0.1:1"

NEEDED = {
    "model_index.json",
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}
LEFT = {
    ".gitattributes",
    "sd-v1-5-inpainting.ckpt",
    "sd-v1-5-inpainting.safetensors",
    "safety_checker/model.fp16.safetensors",
    "safety_checker/pytorch_model.bin",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/old/config.json",
}


class Hub(ThreadingHTTPServer):
    """Answers what ``snapshot_download`` asks, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: set[str] = set()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path in (f"/api/models/{MODEL}", f"/api/models/{MODEL}/revision/{COMMIT}"):
            files = [{"rfilename": name} for name in sorted(NEEDED | LEFT)]
            info = {"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": files}
            self._answer(json.dumps(info).encode(), "application/json")
        elif path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
            self.server.asked.add(name)
            self._answer(f"content of {name}".encode(), "application/octet-stream")
        elif path.startswith(f"/api/models/{MODEL}/revision/"):
            self._refuse("RevisionNotFound")
        else:
            self._refuse("RepoNotFound")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(
    home: Path, endpoint: str, *asked: tuple[str, str | None], offline: bool = False
) -> list[str]:
    """Fetch names at revisions in a process of its own, since the hub's settings are read once."""
    code = (
        "from export.errors import ExportError\n"
        "from export.hub import fetch\n"
        f"for name, revision in {list(asked)!r}:\n"
        "    try: print(*fetch(name, revision=revision), sep='|')\n"
        "    except ExportError as exc: print('refused:', exc)\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k}
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": str(int(offline)),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


def test_only_what_is_needed_is_fetched_and_never_a_pickle(hub: Hub, tmp_path: Path) -> None:
    first, again = fetch(tmp_path, hub.endpoint, (MODEL, None), (MODEL, COMMIT))
    folder, commit = first.split("|")
    assert commit == COMMIT
    assert again == first
    assert Path(folder).is_relative_to(tmp_path)
    files = {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}
    assert files == NEEDED
    assert hub.asked == NEEDED
    content = (Path(folder) / "unet" / "config.json").read_text()
    assert content == "content of unet/config.json"
    # Offline, the cache is enough, and what is not in it is refused.
    cached, absent = fetch(tmp_path, DEAD, (MODEL, COMMIT), ("nobody/nothing", None), offline=True)
    assert cached == first
    assert absent == (
        f"refused: nobody/nothing: is not in the local cache and {DEAD} cannot be asked"
    )


def test_failures_are_one_sentence(hub: Hub, tmp_path: Path) -> None:
    found = fetch(tmp_path, hub.endpoint, ("nobody/nothing", None), (MODEL, "v9"))
    assert found == [
        f"refused: nobody/nothing: is neither a folder here nor a public repository on "
        f"{hub.endpoint}; check the name, or set HF_TOKEN where it is private or gated",
        f"refused: {MODEL}: has no revision 'v9' on {hub.endpoint}",
    ]
    assert fetch(tmp_path, DEAD, (MODEL, None)) == [
        f"refused: {MODEL}: cannot be fetched from {DEAD} (ConnectionError); "
        "check the connection, or name a folder on this machine"
    ]


def test_wanted() -> None:
    assert set(wanted(NEEDED | LEFT)) == NEEDED
    shards = [
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ]
    checker = {name for name in NEEDED if name.startswith(("safety_checker/", "feature_"))}
    assert len(checker) == 3
    assert set(wanted(NEEDED | LEFT, safety_checker=False)) == NEEDED - checker
    more = ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"]
    assert sorted(wanted([*shards, *more])) == shards


@pytest.mark.parametrize(
    "name",
    ["runwayml/stable-diffusion-inpainting", "gpt2", "a.b/c_d-e", "a/b.gits", "_a/b_", "a" * 96],
)
def test_hub_names(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "/a", "a/", "a b/c", "~/model", "https://x/y",
                                  ".", "..", "./a", "../a", ".x/y", "a--b/c", "a..b/c", "a-/b",
                                  "-a/b", "a/.b", "a/b.", "a/b.git", "a" * 97])  # fmt: skip
def test_other_names(name: str) -> None:
    assert not is_hub_name(name)


@pytest.mark.parametrize("offline", [False, True])
def test_the_rules_are_the_hubs(offline: bool, tmp_path: Path) -> None:
    """Should the library have stricter ones some day, its refusal is a sentence as well."""
    (found,) = fetch(tmp_path, DEAD, ("a--b/c", None), offline=offline)
    assert found.startswith("refused: a--b/c: is no name that the hub could have: ")
