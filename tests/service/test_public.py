"""The public face of the package, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import service


def test_public_names() -> None:
    assert service.__all__ == ["Settings", "create_app"]
    for name in service.__all__:
        assert getattr(service, name).__name__ == name
    with pytest.raises(AttributeError):
        service.nothing  # noqa: B018


@pytest.mark.parametrize(
    "what", ["import service", "from service.cli import main; main(['--help'])"]
)
def test_starting_is_light(what: str) -> None:
    heavy = "['engine', 'export', 'starlette', 'uvicorn', 'pydantic', 'httpx', 'numpy', 'rich']"
    code = f"import sys\n{what}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_torch_is_not_imported() -> None:
    code = "import service.app, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
