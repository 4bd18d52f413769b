"""An editing session: one picture, one change after the other, and the newest wins.

    with engine.edit(photo, on_event=show) as session:
        session.change(mask=mask, prompt="a red apple", seed=7)
        session.change(prompt="a sunflower")         # the first ends as cancelled at its next step
        session.result()                             # of the newest

Works the same on ``Engine`` and on an engine in a process of its own: whatever has ``submit``.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError, InputError, RequestCancelled
from engine.plan import Vae
from engine.prompt_syntax import PromptSyntax
from engine.request import InpaintRequest, InpaintResult, Region
from engine.ticket import MakePreview, OnStep, Ticket

logger = logging.getLogger(__name__)


class Submits(Protocol):
    """What a session needs of an engine."""

    def submit(self, request: InpaintRequest, *, on_step: OnStep | None = None) -> Ticket:
        """See ``Engine.submit``."""
        ...


class Changes(TypedDict, total=False):
    """The fields of ``InpaintRequest`` that a change may set."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    prompt: str
    negative_prompt: str
    width: int | None
    height: int | None
    samples: int
    seed: int | None
    strength: float
    num_inference_steps: int | None
    guidance_scale: float | None
    scheduler: str | None
    region: Region
    prompt_syntax: PromptSyntax
    clip_skip: int
    working_size: int | None
    safety_checker: bool
    vae: Vae
    guidance_share: float
    deep_cache_interval: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EditEvent:
    """What became of an edit. Every edit ends with exactly one event that is no preview, and edits
    end in the order they were asked for.

    Attributes:
        edit: Its number, from 1.
        kind: ``"cancelled"`` where a newer edit was asked for, or the session was closed.
        step: Of a preview: the step that was made, from 1.
        steps: Of a preview: how many there are.
        preview: Of a preview: see ``Ticket.on_step``.
        result: Of a result.
        error: Of an error.
    """

    edit: int
    kind: Literal["preview", "result", "cancelled", "error"]
    step: int = 0
    steps: int = 0
    preview: MakePreview | None = None
    result: InpaintResult | None = None
    error: EngineError | None = None


OnEvent: TypeAlias = Callable[[EditEvent], None]


class EditingSession:
    """Edits of one picture. Safe to use from any thread; a context manager.

    Args:
        engine: Makes the pictures.
        image: (H, W, 3) uint8 RGB, kept as it is handed in.
        on_event: Called with every event, one at a time and in order, from the engine's thread or
            from the one that changes; it should return at once, and may itself call ``change``.
    """

    def __init__(
        self,
        engine: Submits,
        image: npt.NDArray[np.uint8],
        *,
        on_event: OnEvent | None = None,
    ) -> None:
        self._engine = engine
        self._fields: dict[str, Any] = {"image": image}
        self._listeners: list[OnEvent] = [] if on_event is None else [on_event]
        self._changing = threading.RLock()  # held by whoever makes a change
        self._lock = threading.Condition()  # held for moments, never while a listener is called
        self._waiting: deque[EditEvent] = deque()
        self._telling = False
        self._current = 0  # the newest edit that was announced ...
        self._open = False  # ... and whether it has not ended
        self._ticket: Ticket | None = None
        self._closed = False

    def change(self, **changes: Unpack[Changes]) -> Ticket:
        """Ask for another picture; an older one under way is cancelled at its next step.

        Args:
            changes: Fields of ``InpaintRequest``; the others stay as they were. The first change
                must give ``mask`` and ``prompt``.

        Returns:
            The promise of this edit's result; it raises RequestCancelled where a newer one won.

        Raises:
            InputError: If a value is not allowed; then nothing changes, and an older edit goes on.
            EngineError: If the session or the engine is closed.
        """
        with self._changing:
            if self._closed:
                raise EngineError("the editing session is closed")
            fields = {**self._fields, **changes}
            for field in ("mask", "prompt"):
                if field not in fields:
                    raise InputError(field, "is needed by the first change of a session")
            number = self._current + 1
            step = partial(self._step, number)
            ticket = self._engine.submit(InpaintRequest(**fields), on_step=step)
            older, self._ticket, self._fields = self._ticket, ticket, fields
            self._announce(number)
            if older is not None:
                older.cancel()
        ticket.add_done_callback(partial(self._done, number))
        return ticket

    def result(self, timeout: float | None = None) -> InpaintResult:
        """Wait for the result of the newest edit, also of one that is asked for meanwhile.

        Args:
            timeout: Seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: If it is not done in time; the work goes on.
            RequestCancelled: If the session was closed.
            EngineError: What went wrong; or if nothing was asked for.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            ticket = self._ticket
            if ticket is None:
                raise EngineError("nothing was asked for in this editing session")
            try:
                return ticket.result(None if deadline is None else deadline - time.monotonic())
            except RequestCancelled:
                if self._ticket is ticket:
                    raise

    def events(self) -> Iterator[EditEvent]:
        """The events from now on, until the session is closed.

        A preview that was not read before the next event came is left out. An iterator that is
        dropped keeps nothing any more.
        """
        kept: deque[EditEvent] = deque()
        reference = weakref.ref(kept, lambda _: self._listeners.remove(keep))

        def keep(event: EditEvent) -> None:
            kept = reference()
            if kept is None:
                return
            with self._lock:
                if kept and kept[-1].kind == "preview":
                    kept.pop()
                kept.append(event)
                self._lock.notify_all()

        def read(kept: deque[EditEvent]) -> Iterator[EditEvent]:
            while True:
                with self._lock:
                    self._lock.wait_for(lambda: kept or self._over)
                    if not kept:
                        return
                    event = kept.popleft()
                yield event

        with self._lock:
            self._listeners.append(keep)
        return read(kept)

    def close(self) -> None:
        """Cancel what is under way; there are no changes afterwards."""
        with self._changing:
            self._closed = True
            ticket = self._ticket
        with self._lock:
            if self._open:
                self._open = False
                self._waiting.append(EditEvent(edit=self._current, kind="cancelled"))
        if ticket is not None:
            ticket.cancel()
        self._tell()

    @property
    def _over(self) -> bool:
        return self._closed and not self._open and not self._waiting and not self._telling

    def _announce(self, number: int) -> None:
        """From here on ``number`` is the newest: an older one that is open ends as cancelled."""
        with self._lock:
            if number > self._current:
                if self._open:
                    self._waiting.append(EditEvent(edit=self._current, kind="cancelled"))
                self._current, self._open = number, True
        self._tell()

    def _step(self, number: int, step: int, total: int, preview: MakePreview) -> None:
        self._announce(number)  # the engine may be faster than the thread that asks it
        with self._lock:
            if number != self._current or not self._open:
                return
            self._waiting.append(
                EditEvent(edit=number, kind="preview", step=step, steps=total, preview=preview)
            )
        self._tell()

    def _done(self, number: int, ticket: Ticket) -> None:
        try:
            event = EditEvent(edit=number, kind="result", result=ticket.result(0))
        except RequestCancelled:
            event = EditEvent(edit=number, kind="cancelled")
        except EngineError as exc:
            event = EditEvent(edit=number, kind="error", error=exc)
        with self._lock:
            if number != self._current or not self._open:
                return
            self._open = False
            self._waiting.append(event)
        self._tell()

    def _tell(self) -> None:
        """Call the listeners: one thread at a time does it, for all events there are."""
        with self._lock:
            if self._telling:
                return
            self._telling = True
        while True:
            with self._lock:
                if not self._waiting:
                    self._telling = False
                    self._lock.notify_all()
                    return
                event = self._waiting.popleft()
                listeners = tuple(self._listeners)
            for listener in listeners:
                try:
                    listener(event)
                except Exception:
                    logger.exception("a listener of an editing session failed")

    def __enter__(self) -> EditingSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
