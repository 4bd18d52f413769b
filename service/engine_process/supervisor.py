"""One thread that owns the child: starts it, feeds it, watches it, buries it.

Everything that changes is changed by this thread; other threads only leave something at the door
(``submit``, ``notice``, ``close``) and ring. Ticket callbacks run in it.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

import numpy as np

from engine import (
    BundleError,
    DeadlineMissed,
    DeviceLost,
    EngineError,
    InpaintResult,
    RequestCancelled,
    SessionError,
    Ticket,
)
from engine.cache import CacheStatistics
from engine.costs import Estimate
from engine.request import MIN_DEADLINE
from engine.sessions.devices import Device
from service.engine_process.crossing import (
    restore_error,
    unwrap_result,
    unwrap_statistics,
    wrap_request,
)
from service.engine_process.door import Door
from service.engine_process.line import Entry, Line, ProcessTicket
from service.engine_process.patience import Patience
from service.engine_process.program import Program
from service.engine_process.wire import Message, WireError, close_all, unwrap
from service.engine_process.worker import Launch, Worker

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "stopped"]
OnState = Callable[[State], None]

_HEAR_AT_ONCE: Final = 64


class Supervisor:
    """Runs a line of requests through one child after the other.

    Attributes:
        restarts: How many children were lost and replaced, or will be.
        device: What the engine runs on; None until it was open once.
        caches: How the child's caches fared when it last made a picture; a new child begins anew.
        error: Why it has given up, if it has.
        settled: Set once it was open, or has given up.
    """

    def __init__(
        self, launch: Launch, line: Line, patience: Patience, program: Program | None = None
    ) -> None:
        self.state: State = "starting"
        self.restarts = 0
        self.device: Device | None = None
        self.caches: dict[str, CacheStatistics] = {}
        self.error: EngineError | None = None
        self.settled: Final = threading.Event()
        self._launch: Final = launch
        self._line: Final = line
        self._patience: Final = patience
        self._program = program  # waits to become the first child
        self._on_state: list[OnState] = []
        self._worker: Worker | None = None
        self._due = 0.0  # when the next child is started
        self._crossing: Final = Estimate()  # what both ways between the processes take
        self._door: Final = Door()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="edgefill-supervisor", daemon=True)

    # What other threads call.

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        worker = self._worker
        return None if worker is None else worker.pid

    def on_state(self, callback: OnState) -> None:
        """Call ``callback(state)`` at every change."""
        self._on_state.append(callback)

    def start(self) -> None:
        """Start the thread, and with it the first child."""
        self._thread.start()

    def submit(self, entry: Entry) -> None:
        """Take a checked request.

        Raises:
            EngineError: If the engine is closed or has given up.
        """
        if self._closing:
            raise EngineError("the engine is closed")
        if not self._door.bring(entry):
            raise EngineError("the engine is closed") if self.error is None else self._given_up()

    def notice(self, ticket: ProcessTicket) -> None:
        """A ticket was cancelled, or its steps were asked for."""
        self._door.notice(ticket)

    def close(self) -> None:
        """Kill the child; what is not done ends as cancelled."""
        self._closing = True
        self._door.ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # The supervisor's own thread.

    def _run(self) -> None:
        try:
            while not self._closing and self.error is None:
                self._pass()
        except Exception as exc:  # a defect; whoever waits must not wait for ever
            logger.exception("the supervisor of the engine failed")
            self.error = SessionError(f"the supervisor of the engine failed: {exc!r}")
        finally:
            self._end()

    def _pass(self) -> None:
        """Sleep until something happens, and see to it."""
        if self._worker is None and time.monotonic() >= self._due:
            self._spawn()
        poll = select.poll()
        poll.register(self._door.fileno(), select.POLLIN)
        if self._worker is not None:
            poll.register(self._worker.link.fileno(), select.POLLIN)
        timeout = self._timeout()
        poll.poll(None if timeout is None else timeout * 1000)
        self._read()
        self._take()
        self._feed()
        if self._worker is not None:
            wrong = self._patience.overdue(time.monotonic(), busy=bool(self._line.inside))
            if wrong is not None:
                self._lost(wrong)

    def _timeout(self) -> float | None:
        """Seconds until a clock has to be looked at; None where only an event can help."""
        if self._worker is None:
            return max(0.0, self._due - time.monotonic())
        if self.state == "ready" and not self._line.inside and self._line.next() is None:
            return None
        return self._patience.tick

    def _spawn(self) -> None:
        self._patience.started(time.monotonic())
        try:
            program, self._program = self._program, None
            self._worker = Worker(self._launch, program)
        except OSError as exc:
            self._bury(SessionError(f"the engine process cannot be started: {exc}"))

    def _read(self) -> None:
        """Hear what the child has said, though not so long that nothing else gets its turn."""
        for _ in range(_HEAR_AT_ONCE):
            if self._worker is None:
                return
            try:
                received = self._worker.link.receive()
                if received is None:
                    self._lost()
                    return
                message, fds = received
                try:
                    self._hear(message, fds)
                finally:
                    close_all(fds)
            except BlockingIOError:
                return
            except (WireError, KeyError, IndexError, TypeError, ValueError) as exc:
                self._lost(f"spoke nonsense: {exc!r}")

    def _hear(self, message: Message, fds: list[int]) -> None:
        kind = message["kind"]
        if kind == "log":
            logging.getLogger(message["name"]).log(message["level"], "%s", message["text"])
        elif kind == "ready":
            self.device = Device(**message["device"])
            self._patience.ready(time.monotonic(), self.device.name)
            self._change("ready")
            self.settled.set()
        elif kind == "failed":
            self._bury(restore_error(message["error"]), told=True)
        else:
            self._patience.alive(time.monotonic())
            if kind != "beat":
                self._answer(kind, self._line.inside[message["id"]], message, fds)

    def _answer(self, kind: str, entry: Entry, message: Message, fds: list[int]) -> None:
        if kind == "step":
            preview = np.asarray(unwrap(fds[0])[1]["preview"], np.uint8)
            entry.ticket.report_step(message["step"], message["total"], lambda: preview)
        elif kind == "done":
            self.caches = unwrap_statistics(message["caches"])
            times = {"submitted": entry.submitted, "prepared": entry.prepared}
            result = unwrap_result(fds[0], **times)
            self._crossing.add(time.perf_counter() - entry.handed - message["seconds"])
            self._settle(entry, result)
        elif kind == "error":
            error = restore_error(message["error"])
            unasked = isinstance(error, RequestCancelled) and not entry.ticket.cancelled()
            if unasked or isinstance(error, DeviceLost):  # its loop ended, or is of no more use
                self._lost(f"lost its device: {error}")
            else:
                self._settle(entry, error)
        else:
            raise WireError(f"a message of kind {kind!r}")

    def _settle(self, entry: Entry, outcome: InpaintResult | EngineError) -> None:
        self._patience.finished()
        self._line.withdraw(entry)
        entry.ticket.settle(outcome)

    def _take(self) -> None:
        """See what other threads left at the door."""
        entries, tickets = self._door.take()
        for entry in entries:
            self._line.join(entry)
        for ticket in tickets:
            found = self._line.find(ticket.number)
            if found is not None and not self._pass_on(found):
                self._door.put_back(ticket)  # the child does not read; at the next tick again

    def _pass_on(self, entry: Entry) -> bool:
        """Tell the child that a request is cancelled or watched; False where it cannot hear."""
        ticket = entry.ticket
        if ticket.number not in self._line.inside:
            if ticket.cancelled():
                self._line.withdraw(entry)
                ticket.settle(Ticket.cancellation())
            return True
        if ticket.watched and not entry.told_watch:
            entry.told_watch = self._say({"kind": "watch", "id": ticket.number})
            if not entry.told_watch:
                return False
        if ticket.cancelled() and not entry.told_cancel:
            entry.told_cancel = self._say({"kind": "cancel", "id": ticket.number})
            return entry.told_cancel
        return True

    def _feed(self) -> None:
        """Let in whoever may enter."""
        while self.state == "ready" and (entry := self._line.next()) is not None:
            if entry.ticket.cancelled():
                self._line.withdraw(entry)
                entry.ticket.settle(Ticket.cancellation())
                continue
            left = self._left(entry)
            if left is not None and left < MIN_DEADLINE:
                self._line.withdraw(entry)
                late = "the request was not begun before its deadline"
                entry.ticket.settle(DeadlineMissed(late))
                continue
            entry.handed = time.perf_counter()
            try:
                fd = wrap_request(entry.draft, entry.region, left=left)
            except OSError as exc:
                self._line.withdraw(entry)
                entry.ticket.settle(SessionError(f"no memory to hand the request over: {exc}"))
                continue
            watched = entry.ticket.watched
            message = {"kind": "run", "id": entry.ticket.number, "watched": watched}
            try:
                heard = self._say(message, fd)
            finally:
                os.close(fd)
            if not heard:
                return
            entry.told_watch = watched
            if not self._line.inside:
                self._patience.alive(time.monotonic())
            self._line.enter(entry)

    def _left(self, entry: Entry) -> float | None:
        """What is left of a deadline for the child; None without one."""
        if entry.draft.deadline is None:
            return None
        spent = time.perf_counter() - entry.submitted
        return entry.draft.deadline - spent - (self._crossing.seconds or 0.0)

    def _say(self, message: Message, *fds: int) -> bool:
        """Send a message; False where the child is full, or dead, which the next pass will see."""
        assert self._worker is not None
        try:
            self._worker.link.send(message, fds)
        except (BlockingIOError, ConnectionError):
            return False
        return True

    def _lost(self, why: str | None = None) -> None:
        """The child is dead or has to be."""
        assert self._worker is not None
        worker = self._worker
        died = worker.kill()
        what = f"engine process {worker.pid} {why or died}"
        if self.state == "ready":
            logger.error("%s with %d request(s) inside", what, len(self._line.inside))
        else:
            logger.error("%s while it started", what)
        self._bury(DeviceLost(what))

    def _bury(self, error: EngineError, *, told: bool = False) -> None:
        """Take note of a dead child, and decide whether there will be another.

        Args:
            error: What it died of.
            told: It said so itself while it opened.
        """
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
        self._due = self._patience.died(time.monotonic())
        out = self._line.crash()
        hopeless = told and (self.device is None or isinstance(error, BundleError))
        if hopeless or self._patience.exhausted():
            self.error = error  # the thread ends, and settles whoever is left
        else:
            self.restarts += 1
            self._change("starting" if self.device is None else "restarting")
        for entry in out:
            if entry.ticket.cancelled():
                entry.ticket.settle(Ticket.cancellation())
            else:
                tried = f"the request was given up after {entry.ticket.attempts} attempts"
                entry.ticket.settle(DeviceLost(f"{tried}: {error}"))

    def _end(self) -> None:
        """Leave nothing behind: no child, nobody who waits."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
        for entry in self._door.shut():
            self._line.join(entry)
        self._change("stopped")
        for entry in self._line.drain():
            if entry.ticket.cancelled():
                entry.ticket.settle(Ticket.cancellation())
            elif self.error is not None:
                entry.ticket.settle(self._given_up())
            else:
                closed = "the engine was closed before the picture was done"
                entry.ticket.settle(RequestCancelled(closed))
        self.settled.set()

    def _given_up(self) -> DeviceLost:
        return DeviceLost(f"the engine has given up: {self.error}")

    def _change(self, state: State) -> None:
        if state == self.state:
            return
        self.state = state
        for callback in tuple(self._on_state):
            try:
                callback(state)
            except Exception:
                logger.exception("a state callback failed")
