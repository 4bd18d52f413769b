"""``edgefill serve``: the HTTP service."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.arguments import add_engine
from service.console import USAGE, CommandError, reason

if TYPE_CHECKING:
    from service.commands.arguments import Commands
    from service.decoding import PictureDecoder
    from service.engine_process import EngineProcess
    from service.engine_process.program import Program
    from service.settings import Settings
    from service.storage import Storage

logger = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "serve",
        help="answer requests over HTTP",
        description="Serve POST /api/v6/realtime/inpaint. "
        "Settings come from EDGEFILL_ variables; the README lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000; 0: any free)")
    add_engine(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    serve(
        host=arguments.host,
        port=arguments.port,
        bundle=arguments.bundle,
        device=arguments.device,
    )
    return 0


def serve(*, host: str, port: int, bundle: Path | None, device: str | None) -> None:
    """Serve until interrupted.

    Raises:
        CommandError: When the settings, the address or the model do not allow it.
    """
    with _stoppable() as look, contextlib.closing(_program()) as program:
        _prepare(program, look, host=host, port=port, bundle=bundle, device=device)


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], None]]:
    """Let SIGTERM, from now on and not from when requests are answered, be a stop as wanted, and
    SIGINT an interruption.

    Yields:
        What ends this thread where such a signal came and its exception was lost: Python drops
        those that are raised while it forks.
    """
    came: list[int] = []

    def look() -> None:
        if signal.SIGINT in came:
            raise KeyboardInterrupt
        if came:
            sys.exit(0)

    def end(number: int, frame: object) -> None:
        came.append(number)
        look()

    stops = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, end) for number in stops]
    try:
        yield look
    finally:
        for number, handler in zip(stops, before, strict=True):
            signal.signal(number, handler)


def _program() -> Program:
    """The engine's process: it loads its libraries while the settings are read here.

    Raises:
        CommandError: When the system has no room for it.
    """
    from service.engine_process.program import Program

    try:
        return Program(ahead=True)
    except OSError as exc:
        raise CommandError(f"the engine's process cannot be started: {reason(exc)}") from exc


def _prepare(
    program: Program,
    look: Callable[[], None],
    *,
    host: str,
    port: int,
    bundle: Path | None,
    device: str | None,
) -> None:
    """Read the settings, see that they and the address can be had, and serve."""
    from service import logs
    from service.allocator import keep_buffers
    from service.errors import SettingsError
    from service.settings import Settings

    try:
        settings = Settings.load()
    except SettingsError as exc:
        raise CommandError(str(exc), code=USAGE) from exc
    logs.configure(form=settings.log_format, level=settings.log_level)
    for name in Settings.unknown_variables():
        logger.warning("unknown variable: %s; known: %s", name, ", ".join(Settings.variables()))
    given = {"bundle": bundle, "device": device}
    settings = settings.model_copy(update={k: v for k, v in given.items() if v is not None})
    if not settings.api_keys and not is_loopback(host):
        raise CommandError(
            f"without API keys only loopback is served, and {host} is not",
            hint="set EDGEFILL_API_KEYS, for example to the output of `openssl rand -hex 24`",
            code=USAGE,
        )
    keep_buffers()
    with listener(host, port) as sock:
        _require_storage(settings)
        with _sole_server(settings.data_dir):
            _require_jobs(settings)
            _serve(settings, sock, program, look)


@contextlib.contextmanager
def _sole_server(data_dir: Path) -> Iterator[None]:
    """Keep other servers away from the data folder.

    Raises:
        CommandError: When one is there already.
    """
    from service.lock import InUseError, sole_server

    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with sole_server(data_dir.absolute()):
            yield
    except InUseError as exc:
        hint = "stop that server, or set EDGEFILL_DATA_DIR to another directory"
        raise CommandError(str(exc), hint=hint) from exc


def _require_jobs(settings: Settings) -> None:
    """See that the job store can be used before a model is loaded.

    Raises:
        CommandError: When it cannot.
    """
    from service.errors import SettingsError
    from service.jobs import JobStore, StoreError, default_url

    try:
        JobStore.open(settings.database_url or default_url(settings.data_dir)).close()
    except (SettingsError, StoreError) as exc:
        hint = "EDGEFILL_DATABASE_URL says where; without it a file in EDGEFILL_DATA_DIR is used"
        raise CommandError(f"jobs cannot be kept: {exc}", hint=hint) from exc


def _require_storage(settings: Settings) -> None:
    """See that pictures and jobs can be kept before a model is loaded for them.

    Raises:
        CommandError: When nothing can be written there.
    """
    from service.errors import StorageError
    from service.storage import Folder, open_storage

    async def check(storage: Storage) -> None:
        await storage.open()
        await storage.close()

    url, folder = settings.storage_url, settings.data_dir.absolute()
    places = [("pictures in", url or folder, open_storage(url, folder))]
    if url is not None and settings.database_url is None:
        places.append(("jobs in", folder, Folder(folder)))
    for what, where, storage in places:
        try:
            asyncio.run(check(storage))
        except StorageError as exc:
            hint = "set EDGEFILL_DATA_DIR to a directory that can be written"
            if where == url:
                hint = "EDGEFILL_STORAGE_URL says where; credentials come from the environment"
            raise CommandError(f"cannot keep {what} {where}: {exc}", hint=hint) from exc


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback, and nothing that others can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens there, taken before the model is loaded.

    Raises:
        CommandError: When the address is not there or is in use.
    """
    if not 0 <= port <= 65535:
        raise CommandError(f"--port is {port}; must be between 0 and 65535", code=USAGE)
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = info[0]
        sock = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as exc:
        raise CommandError(f"cannot listen on {host} port {port}: {reason(exc)}") from exc
    except UnicodeError as exc:
        raise CommandError(f"cannot listen on {host}: it is not a host name") from exc
    # Inherited by what is accepted. An answer is a head and a body: without this the body of every
    # answer but a connection's first waits 40 ms for the client to acknowledge the head.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextlib.contextmanager
def _opened(settings: Settings, program: Program) -> Iterator[tuple[EngineProcess, PictureDecoder]]:
    """The engine and the processes that decode pictures, started side by side while the
    application is loaded here.

    Raises:
        CommandError: When the model cannot be opened, or a process not be started.
    """
    from engine import EngineError
    from service.decoding import PictureDecoder
    from service.engine_process import EngineProcess
    from service.safety import find, tell

    with contextlib.closing(PictureDecoder.start(limits=settings.picture_limits)) as decoder:
        checker = find()
        try:
            engine = EngineProcess.open(
                settings.bundle,
                device=settings.device,
                safety_checker=checker.path,
                cache_bytes=settings.cache_bytes,
                program=program,
                meanwhile=partial(importlib.import_module, "service.app"),
            )
        except EngineError as exc:
            raise CommandError(
                str(exc), hint="`edgefill doctor` shows what works on this machine"
            ) from exc
        with engine:
            try:
                decoder.wait()
            except OSError as exc:
                raise CommandError(f"pictures cannot be decoded: {reason(exc)}") from exc
            tell(engine.safety_checker, checker)
            yield engine, decoder


def _serve(
    settings: Settings, sock: socket.socket, program: Program, look: Callable[[], None]
) -> None:
    with _opened(settings, program) as (engine, decoder):
        import uvicorn

        from service.app import create_app
        from service.stream.protocol import options

        config = uvicorn.Config(
            create_app(settings, engine, decoder=decoder),
            log_config=None,
            access_log=True,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=30,
            **options(settings),
        )
        server = uvicorn.Server(config)
        host, port = sock.getsockname()[:2]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        logger.info("serving: http://%s (device: %s)", where, engine.device.name)
        look()
        # uvicorn raises the signal that stopped it once more; here both mean: stopped as wanted.
        try:
            with contextlib.suppress(KeyboardInterrupt):
                server.run(sockets=[sock])
        except SystemExit as exc:
            if exc.code != 0:  # uvicorn's own code for an application that does not start
                what = "the service did not start; the log above says why"
                raise CommandError(what) from exc
