"""Brings the plan together: what the request asks, what runs already, and the measured costs."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Final

from engine.bundle import FAST_DECODER, Bundle
from engine.canvas import Geometry, shrunk
from engine.clock import Clock
from engine.costs import REST, CostTable
from engine.errors import DeadlineMissed
from engine.forecast import Share, step_ends
from engine.job import Draft, Job, first_step
from engine.plan import LEAST_SIDE, SHARES, Plan, Rung, Vae, choose, fewest_steps, ladder, quickest
from engine.schedulers import calls_per_step, make_schedule

TRY_EVERY: Final = 8
"""Of so many refusals in a row, one is tried the quickest way instead: what is refused measures
nothing, and costs that were taken in a bad moment would be believed for ever."""

_DECODERS: Final[dict[Vae, str]] = {"full": "vae_decoder", "fast": FAST_DECODER}
_REMEMBERED: Final = 32
_FIRST_GUESS: Final = 1.1
_LEAST_MARGIN: Final = 1.05
_MOST_MARGIN: Final = 3.0


class Margin:
    """How much longer planned pictures take than was thought: the 90th percentile of late.

    Whatever the costs do not tell is in it: who came meanwhile, and what else the machine does.
    """

    def __init__(self) -> None:
        self._ratios: deque[float] = deque([_FIRST_GUESS] * 8, maxlen=_REMEMBERED)

    def add(self, *, estimated: float, taken: float) -> None:
        """Take note of what became of an estimate."""
        self._ratios.append(taken / estimated)

    @property
    def factor(self) -> float:
        """What an estimate is multiplied by."""
        rank = int(0.9 * (len(self._ratios) - 1))  # one that went wrong is no rule
        return min(max(sorted(self._ratios)[rank], _LEAST_MARGIN), _MOST_MARGIN)


class Planner:
    """Plans the pictures of one engine; called by its loop only.

    Every step counts as guided and whole, also where a request saves on that.
    """

    def __init__(self, bundle: Bundle, costs: CostTable, *, max_batch_pixels: int) -> None:
        self._bundle = bundle
        self._costs = costs
        self._max_batch_pixels = max_batch_pixels
        self._vaes: Final[tuple[Vae, ...]] = (
            ("full", "fast") if FAST_DECODER in bundle.components else ("full",)
        )
        self._margin = Margin()
        self._refusals = 0

    def plan(
        self,
        draft: Draft,
        *,
        left: float,
        running: Sequence[tuple[Job, int, int]],
        waiting: Sequence[Draft],
    ) -> Draft:
        """The draft with fewer steps, a smaller working size or another decoder, where it would
        come too late as it is; otherwise the same but for its ``plan``.

        Args:
            draft: With a deadline and something to do; it is about to join the loop.
            left: Seconds until its deadline.
            running: Jobs in the loop, each with what it waited (see ``engine.batcher``) and the
                rows of its step under way that are done.
            waiting: What will join after it.

        Raises:
            DeadlineMissed: If the deadline cannot be kept.
        """
        asked, vaes = draft.num_inference_steps, self._vaes
        if draft.savings.vae == "fast":
            vaes = ("fast",)
        sizes = self._sizes(draft.geometry)

        @cache
        def unet(pixels: int, rows: int) -> float | None:
            return self._costs.seconds("unet", pixels=pixels, rows=rows)

        def ends(share: float, calls: int, *, company: bool) -> list[float]:
            """When the calls of a working size are made, from now on."""
            mine = self._share(dataclasses.replace(draft, geometry=sizes[share]))
            mine.steps = calls
            made = step_ends(
                mine,
                running=[self._running(*job) for job in running] if company else (),
                waiting=[self._share(other) for other in waiting] if company else (),
                unet=lambda pixels, rows: unet(pixels, rows) or 0.0,
                max_pixels=self._max_batch_pixels,
                horizon=left if company else math.inf,
            )
            return [mine.before + end for end in made]

        @cache
        def alone(share: float) -> list[float]:
            return ends(share, len(draft.schedule or ()), company=False)

        @cache
        def together(share: float, calls: int) -> float:
            found = ends(share, calls, company=True)
            return found[-1] if len(found) == calls else math.inf

        per_step = calls_per_step(draft.scheduler)
        extra = len(draft.schedule or ()) - per_step * (asked - first_step(draft, asked))

        def seconds(rung: Rung) -> float | None:
            if unet(_pixels(sizes[rung.share]), _rows(draft)) is None:
                return None
            after = self._after(draft, sizes[rung.share], rung.vae)
            calls = per_step * (rung.steps - first_step(draft, rung.steps)) + extra
            end = alone(rung.share)[calls - 1]
            if (running or waiting) and end + after <= left:
                end = together(rung.share, calls)
            return end + after

        fewest = fewest_steps(draft.scheduler, asked)
        rungs = list(ladder(asked=asked, fewest=fewest, shares=tuple(sizes), vaes=vaes))
        try:
            rung, estimated = choose(rungs, seconds=seconds, left=left, margin=self._margin.factor)
            self._refusals = 0
        except DeadlineMissed:
            self._refusals += 1
            if self._refusals % TRY_EVERY:
                raise
            rung, estimated = quickest(rungs, seconds)
        geometry = sizes[rung.share]
        return dataclasses.replace(
            self._with_steps(draft, rung.steps),
            geometry=geometry,
            savings=dataclasses.replace(draft.savings, vae=rung.vae),
            plan=Plan(
                num_inference_steps=rung.steps,
                working_size=(geometry.padded_width, geometry.padded_height),
                vae=rung.vae,
                estimated=estimated,
                reduced=rung != rungs[0],
            ),
        )

    def learn(self, draft: Draft, clock: Clock, now: float) -> None:
        """A picture is done, or was given up: what it took outside the networks is added to the
        costs, and what it took in all is held against the plan.

        Args:
            now: ``time.perf_counter()``.
        """
        spent = clock.spent
        if "paste" in spent:
            rest = spent.get("prepare", 0.0) + spent["paste"]
            pixels = draft.mask.size
            self._costs.add(REST, pixels=pixels, rows=draft.samples, seconds=rest)
            if draft.safety_checker:
                checked = spent.get("safety_checker", 0.0)
                self._costs.add(
                    "safety_checker", pixels=pixels, rows=draft.samples, seconds=checked
                )
        if draft.plan is not None and draft.plan.estimated:
            self._margin.add(estimated=draft.plan.estimated, taken=now - clock.started)

    def _with_steps(self, draft: Draft, steps: int) -> Draft:
        """The same draft with another number of steps."""
        if steps == draft.num_inference_steps:
            return draft
        schedule = make_schedule(
            draft.scheduler,
            self._bundle.scheduler,
            num_inference_steps=steps,
            start=first_step(draft, steps),
        )
        return dataclasses.replace(draft, num_inference_steps=steps, schedule=schedule)

    def _sizes(self, geometry: Geometry) -> dict[float, Geometry]:
        """The working sizes by their shares, the largest first."""
        sizes = {1.0: geometry}
        for share in SHARES[1:]:
            smaller = shrunk(geometry, share)
            if max(smaller.working_width, smaller.working_height) >= LEAST_SIDE:
                sizes[share] = smaller
        return sizes

    def _before(self, draft: Draft) -> float:
        """What is done before the first step."""
        pixels, ours = _pixels(draft.geometry), self._bundle
        inpainting = ours.unet_channels != ours.latents.channels
        pictures = 1 if not inpainting or draft.strength == 1.0 else 2
        encode = self._seconds("vae_encoder", pixels) * pictures
        if draft.reference:
            encode *= draft.samples
        text = sum(self._seconds(name, 1) for name in ours.text_encoders)
        return encode + text * (2 if draft.guidance_scale > 1.0 else 1)

    def _after(self, draft: Draft, geometry: Geometry, vae: Vae) -> float:
        """What is done after the last step; all that is outside the networks counts here."""
        whole = draft.mask.size
        rest = self._seconds(REST, whole, draft.samples)
        checked = self._seconds("safety_checker", whole, draft.samples)
        decode = self._decode(_pixels(geometry), vae) * draft.samples
        return decode + rest + (checked if draft.safety_checker else 0.0)

    def _decode(self, pixels: int, vae: Vae) -> float:
        """A decoder that has never run is thought to take what the full one takes."""
        found = self._costs.seconds(_DECODERS[vae], pixels=pixels)
        return self._seconds(_DECODERS["full"], pixels) if found is None else found

    def _seconds(self, network: str, pixels: int, rows: int = 1) -> float:
        return self._costs.seconds(network, pixels=pixels, rows=rows) or 0.0

    def _share(self, draft: Draft) -> Share:
        return Share(
            shape_key=draft.geometry.latent_shape,
            row_pixels=_pixels(draft.geometry),
            rows=_rows(draft),
            steps=len(draft.schedule or ()),
            before=self._before(draft),
            after=self._after(draft, draft.geometry, draft.savings.vae),
        )

    def _running(self, job: Job, waited: int, rows_done: int) -> Share:
        share = self._share(job.draft)
        share.steps = len(job.schedule) - job.step
        share.waited, share.rows_done = waited, rows_done
        return share


def _rows(draft: Draft) -> int:
    return draft.samples * (2 if draft.guidance_scale > 1.0 else 1)


def _pixels(geometry: Geometry) -> int:
    return geometry.padded_width * geometry.padded_height
