"""The house keeps its shape: one-way doors, public faces, short files, no torch at run time."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = ("engine", "export", "service", "bench")
MAX_LINES = 400

HEAVY = {"torch", "diffusers", "transformers", "optimum", "safetensors", "accelerate", "onnx"}
NETWORK = {"httpx", "requests", "urllib", "http", "socket", "ssl", "starlette", "uvicorn"}
ENGINE_MAY = {"numpy", "cv2", "isal", "tokenizers", "onnxruntime", "tensorrt", "engine"}
RUNTIMES = {"onnxruntime", "tensorrt"}
PUBLIC = {
    "engine": [
        "Bundle",
        "BundleError",
        "DeadlineMissed",
        "DeviceLost",
        "Engine",
        "EngineError",
        "InpaintRequest",
        "InpaintResult",
        "InputError",
        "Plan",
        "RequestCancelled",
        "RuntimeUnavailable",
        "SessionError",
        "TensorMismatch",
        "Ticket",
        "Timings",
    ],
    "service": ["Settings", "create_app"],
    "export": ["ExportError", "ParityError", "Progress", "export_checkpoint"],
    "bench": [],
}


def modules(wing: str) -> list[Path]:
    return sorted((ROOT / wing).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module's full name, and whether it is imported at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", id(node) not in inside


def wings_of(wing: str) -> Iterator[tuple[Path, str, bool]]:
    for path in modules(wing):
        for name, at_module_level in imports(path):
            yield path.relative_to(ROOT), name, at_module_level


def test_the_engine_imports_only_what_it_may() -> None:
    standard = sys.stdlib_module_names
    for path, name, _ in wings_of("engine"):
        top = name.split(".")[0]
        assert top in ENGINE_MAY or top in standard, f"{path} imports {name}"
        assert top not in NETWORK, f"{path} imports {name}"


def test_runtimes_are_imported_by_their_own_session_only() -> None:
    for path, name, at_module_level in wings_of("engine"):
        if name.split(".")[0] in RUNTIMES and at_module_level:
            assert str(path) == "engine/sessions/ort.py", f"{path} imports {name}"


def test_the_engine_reads_no_environment() -> None:
    for path in modules("engine"):
        text = path.read_text(encoding="utf-8")
        assert "os.environ" not in text, path
        assert "getenv" not in text, path


def test_the_service_does_no_model_maths() -> None:
    for path, name, at_module_level in wings_of("service"):
        top = name.split(".")[0]
        assert top not in HEAVY, f"{path} imports {name}"
        assert top != "onnxruntime", f"{path} imports {name}"
        if top in ("export", "bench"):
            assert not at_module_level, f"{path} imports {name} at module level"


def test_the_exporter_sees_of_us_only_the_bundle() -> None:
    for path, name, _ in wings_of("export"):
        if name.split(".")[0] in WINGS:
            allowed = ("export", "engine.bundle", "engine.errors", "engine.schedulers")
            assert name.startswith(allowed), f"{path} imports {name}"


def test_nobody_imports_the_bench() -> None:
    for wing in ("engine", "export"):
        for path, name, _ in wings_of(wing):
            assert name.split(".")[0] != "bench", f"{path} imports {name}"


def test_no_torch_at_run_time() -> None:
    code = (
        "import engine, service.app, sys;"
        f"print([name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("wing", WINGS)
def test_public_names(wing: str) -> None:
    package = importlib.import_module(wing)
    assert sorted(package.__all__) == PUBLIC[wing]
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("wing", WINGS)
def test_every_module_says_what_it_is_for(wing: str) -> None:
    for path in modules(wing):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path} has no docstring"


@pytest.mark.parametrize("folder", [*WINGS, "tests"])
def test_files_are_short(folder: str) -> None:
    for path in modules(folder):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{path} has {lines} lines"


def test_only_the_four_wings_hold_code() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    hidden = {name for name in found if name.startswith(".") or name in ("build", "dist")}
    assert found - hidden - {"venv"} <= {*WINGS, "tests"}
