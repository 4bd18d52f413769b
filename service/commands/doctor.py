"""``edgefill doctor``: what works on this machine, what does not, and what mends it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from service.commands.arguments import add_json
from service.console import FAILED

if TYPE_CHECKING:
    from service.commands.arguments import Commands
    from service.settings import Settings

PACKAGES: Final = (
    "numpy",
    "opencv-python",
    "tokenizers",
    "isal",
    "pybase64",
    "starlette",
    "uvicorn",
    "websockets",
    "httpx",
    "httpcore",
    "pydantic",
    "pydantic-settings",
    "sqlalchemy",
    "fsspec",
    "prometheus-client",
    "rich",
)
EXPORT_PACKAGES: Final = ("torch", "diffusers", "transformers", "optimum", "onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        ok: Whether it works.
        required: Whether Edgefill needs it; what is not required may be missing.
        detail: A version, a path, or what is wrong.
        hint: The command that mends it, or nothing.
    """

    name: str
    ok: bool
    required: bool
    detail: str
    hint: str = ""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "doctor",
        help="say what works on this machine",
        description="Look at packages, runtimes, devices, the default bundle, the settings and "
        "what they name; say what works, what does not, and the command that mends it.",
        allow_abbrev=False,
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    return doctor(as_json=arguments.json)


def doctor(*, as_json: bool) -> int:
    """Print every check; the exit code is 1 when something required does not work."""
    checks = list(examine())
    works = all(check.ok for check in checks if check.required)
    if as_json:
        print(json.dumps({"ok": works, "checks": [asdict(check) for check in checks]}))
        return 0 if works else FAILED
    for check in checks:
        sign = "ok" if check.ok else ("BROKEN" if check.required else "absent")
        print(f"{sign:7} {check.name}: {check.detail}")
        if check.hint and not check.ok:
            print(f"{'':7} hint: {check.hint}")
    print("Edgefill works on this machine." if works else "Edgefill does not work yet.")
    return 0 if works else FAILED


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> Iterator[Check]:
    """Look at everything; a part that breaks does not keep the others from being looked at."""
    yield Check(
        name="python",
        ok=sys.version_info >= (3, 11),
        required=True,
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        hint="install Python 3.11 or newer",
    )
    for package in PACKAGES:
        version = version_of(package)
        yield Check(
            name=package,
            ok=version is not None,
            required=True,
            detail=version or "is not installed",
            hint=f"pip install {package}",
        )
    missing = [package for package in EXPORT_PACKAGES if version_of(package) is None]
    yield Check(
        name="export",
        ok=not missing,
        required=False,
        detail=f"not installed: {', '.join(missing)}" if missing else "everything is installed",
        hint="pip install 'edgefill[export]'",
    )
    yield from _guarded("devices", _devices)
    yield from _guarded("default bundle", _default_bundle)
    yield from _guarded("safety checker", _safety_checker)
    yield from _guarded("settings", _settings)


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from look()
    except Exception as exc:  # a doctor reports what breaks, whatever it is
        yield Check(name=name, ok=False, required=True, detail=f"{type(exc).__name__}: {exc}")


def _devices() -> Iterator[Check]:
    from engine.sessions.devices import report

    findings = report()
    for finding in findings:
        yield Check(
            name=finding.name,
            ok=finding.ok,
            required=False,
            detail=finding.detail,
            hint=finding.hint,
        )
    working = [finding.name for finding in findings if finding.ok]
    yield Check(
        name="devices",
        ok=bool(working),
        required=True,
        detail=f"working: {', '.join(working)}" if working else "no device works",
        hint="pip install 'edgefill[cpu]'",
    )


def _default_bundle() -> Iterator[Check]:
    from engine import BundleError
    from engine.bundle import Bundle
    from engine.engine import DEFAULT_BUNDLE

    try:
        bundle = Bundle.open(DEFAULT_BUNDLE)
        size = sum(record.size for record in bundle.files())
        detail = f"verified: {bundle.family}, {bundle.precision}, {size / 1e6:.1f} MB"
        yield Check(name="default bundle", ok=True, required=True, detail=detail)
    except BundleError as exc:
        hint = "in the folder of Edgefill: pip install --force-reinstall --no-deps ."
        yield Check(name="default bundle", ok=False, required=True, detail=str(exc), hint=hint)


def _safety_checker() -> Iterator[Check]:
    """The one for bundles that have none of their own, such as the default bundle."""
    from service.safety import find

    found = find()
    yield Check(
        name="safety checker",
        ok=found.path is not None,
        required=False,
        detail=f"{found.detail} (for bundles that have no checker of their own)",
        hint=found.hint,
    )


def _settings() -> Iterator[Check]:
    from service.errors import SettingsError
    from service.settings import Settings

    try:
        settings = Settings.load()
    except SettingsError as exc:
        yield Check(name="settings", ok=False, required=True, detail=str(exc))
        return
    yield from _guarded("EDGEFILL_BUNDLE", lambda: _configured_bundle(settings))
    yield from _guarded("EDGEFILL_DEVICE", lambda: _configured_device(settings))
    unknown = Settings.unknown_variables()
    yield Check(
        name="settings",
        ok=not unknown,
        required=False,
        detail=f"unknown: {', '.join(unknown)}" if unknown else "understood",
        hint="the README lists the EDGEFILL_ variables",
    )
    folder = settings.data_dir.absolute()
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
        yield Check(name="data directory", ok=True, required=True, detail=f"{folder} (writable)")
    except OSError as exc:
        hint = "set EDGEFILL_DATA_DIR to a directory that can be written"
        yield Check(
            name="data directory", ok=False, required=True, detail=f"{folder}: {exc}", hint=hint
        )


def _configured_bundle(settings: Settings) -> Iterator[Check]:
    """The bundle that the service would serve, where it is not the default one."""
    from engine import BundleError
    from engine.bundle import Bundle

    if settings.bundle is None:
        return
    name = "EDGEFILL_BUNDLE"
    try:
        bundle = Bundle.open(settings.bundle)
        own = "" if bundle.safety is None else ", with a safety checker of its own"
        detail = f"{settings.bundle} (verified: {bundle.family}, {bundle.precision}{own})"
        yield Check(name=name, ok=True, required=True, detail=detail)
    except (BundleError, OSError) as exc:
        hint = "set EDGEFILL_BUNDLE to a bundle made by `edgefill export`, or unset it"
        yield Check(name=name, ok=False, required=True, detail=str(exc), hint=hint)


def _configured_device(settings: Settings) -> Iterator[Check]:
    """The device that the service would run on, where one was chosen."""
    from engine import EngineError
    from engine.sessions.devices import select

    if "device" not in settings.model_fields_set:
        return
    name = "EDGEFILL_DEVICE"
    try:
        device = select(settings.device)
        detail = f"{settings.device} ({device.detail})"
        yield Check(name=name, ok=True, required=True, detail=detail)
    except EngineError as exc:
        hint = "set EDGEFILL_DEVICE to a device that works here, or unset it"
        yield Check(name=name, ok=False, required=True, detail=str(exc), hint=hint)
