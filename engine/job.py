"""One request under way, in three stages.

``draft`` resolves and checks it against the bundle, in the caller's thread; ``prepare`` runs the
networks that run once and works out all that stays constant; ``finish`` makes the result. Between
the last two, the loop in ``engine.engine`` moves ``Job.advance`` from step to step.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from engine import mask as masks
from engine import schedulers
from engine.blend import Blend
from engine.bundle import VAE_SCALE_FACTOR, Bundle
from engine.cache import ContentCache
from engine.canvas import Geometry, plan_of, resize
from engine.clock import Clock
from engine.composite import paste
from engine.errors import InputError, SessionError
from engine.models import Models, Told, UnetRow, text_shape, to_levels
from engine.moments import Moments
from engine.noise import Generator
from engine.plan import Plan
from engine.prompt import PromptEncoder
from engine.request import MAX_SIDE, MIN_SIDE, InpaintRequest, InpaintResult
from engine.safety_checker import SafetyChecker, require
from engine.savings import Savings
from engine.schedulers import Room, Schedule, SolverState
from engine.wording import Wording

Floats = npt.NDArray[np.float32]
Foreseen = Callable[[], Floats]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """A request with every choice made; nothing in it is shared with the caller.

    Attributes:
        image: (H, W, 3) uint8, the picture at the size of the result; a single sample is made in
            its memory.
        mask: (H, W) uint8 of 0 and 1.
        schedule: None where there is nothing to do: an empty mask, or strength 0.
        deadline: Seconds from submission; see ``InpaintRequest``.
        plan: What was chosen for the deadline, once that was done.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    prompt: str
    negative_prompt: str
    samples: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    strength: float
    scheduler: str
    schedule: Schedule | None
    geometry: Geometry
    reference: bool
    safety_checker: bool
    deadline: float | None = None
    plan: Plan | None = None
    savings: Savings = Savings()
    wording: Wording = Wording()


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A prepared request. All but ``state``, ``step`` and what ``deep`` holds stays as it is.

    Attributes:
        generators: One noise stream per sample.
        told: Of the prompt, and before it of the negative prompt where guidance is above 1.
        conditioning: One of (C + 1, h, w) per sample, or None.
        room: Where steps are made.
        deep: (rows of the first step, D, h, w), the deep features of the last whole UNet run; None
            where every run is whole.
        step: Index of the next step.
    """

    draft: Draft
    clock: Clock
    schedule: Schedule
    generators: tuple[Generator, ...]
    told: tuple[Told, ...]
    conditioning: tuple[Floats, ...] | None
    blend: Blend | None
    state: SolverState
    room: Room
    deep: Floats | None = None
    step: int = 0

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        return self.step >= len(self.schedule)

    @property
    def texts(self) -> tuple[Told, ...]:
        """What the next step follows: the prompt alone once the guided steps are made."""
        guided = self.draft.savings.guided(self.step, steps=len(self.schedule))
        return self.told if guided else self.told[-1:]

    @property
    def shallow(self) -> bool:
        """Whether the next step runs the UNet's outer layers alone."""
        return self.draft.savings.shallow(self.step)

    @property
    def row_count(self) -> int:
        """Rows this job brings to the next UNet call."""
        return len(self.generators) * len(self.texts)

    @property
    def pixels(self) -> int:
        """What this job adds to a UNet call: its rows times the pixels of each."""
        return self.row_count * self.draft.geometry.padded_width * self.draft.geometry.padded_height

    @property
    def shape_key(self) -> tuple[int, ...]:
        """Jobs with the same key may share a UNet call."""
        return (*self.draft.geometry.latent_shape, *text_shape(self.told[0]), self.shallow)

    def rows(self) -> Iterator[UnetRow]:
        """The rows of the next step: every sample, first with the negative prompt if any."""
        move = self.schedule.moves[self.step]
        deep = iter(() if self.deep is None else self.deep[-self.row_count :])
        for told in self.texts:
            for i, sample in enumerate(self.state.latents):
                conditioning = None if self.conditioning is None else self.conditioning[i]
                yield UnetRow(
                    latents=sample,
                    scale=move.input_scale,
                    timestep=move.timestep,
                    told=told,
                    conditioning=conditioning,
                    deep=next(deep, None),
                    shallow=self.shallow,
                )

    def advance(self, noise_pred: Floats, *, foresee: bool = False) -> Foreseen | None:
        """Make one step with the UNet's answer to ``rows``, (row_count, C, h, w).

        The answer's memory is used for the work; nothing of it is kept.

        Returns:
            What the first sample looks like from here, where that is asked for.
        """
        i, schedule = self.step, self.schedule
        guided = noise_pred
        if len(self.texts) > 1:
            samples = len(noise_pred) // 2
            unconditional, guided = noise_pred[:samples], noise_pred[samples:]
            guided -= unconditional
            guided *= np.float32(self.draft.guidance_scale)
            guided += unconditional
        foreseen = None
        if foresee:
            seen = self.state.latents[0].copy(), guided[0].copy()
            foreseen = partial(schedulers.denoised, schedule, i, *seen)
        noise = None if schedule.moves[i].noise is None else self._draw()
        self.state = schedulers.step(schedule, i, self.state, guided, noise, self.room)
        self.step += 1
        if self.blend is not None:
            self._put_back_known(self.blend)
        return foreseen

    def _draw(self) -> Floats:
        shape = (1, *self.state.latents.shape[1:])
        drawn = [generator.normal(shape) for generator in self.generators]
        return drawn[0] if len(drawn) == 1 else np.concatenate(drawn)

    def _put_back_known(self, blend: Blend) -> None:
        """``kept known + mask x``, in place of the latents x."""
        latents, known, room = self.state.latents, blend.clean, self.room
        if not self.done:
            known = schedulers.add_noise(self.schedule, self.step, known, blend.noise, room)
        latents *= blend.mask
        latents += np.multiply(known, blend.kept, out=room.term)
        if known is not blend.clean:
            room.give_back(known)


def draft(request: InpaintRequest, bundle: Bundle) -> Draft:
    """Check a request against a bundle and make every choice that it leaves open.

    Raises:
        InputError: If the request does not fit the bundle.
    """
    defaults = bundle.defaults
    steps = request.num_inference_steps or defaults.num_inference_steps
    guidance = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    scheduler = request.scheduler or defaults.scheduler
    image, mask = _pictures(request)
    start = first_step(request, steps)
    idle = start == steps or not (mask.any() or request.reference)
    schedule = schedulers.make_schedule(
        scheduler, bundle.scheduler, num_inference_steps=steps, start=0 if idle else start
    )
    return Draft(
        image=image,
        mask=mask,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        samples=request.samples,
        seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        strength=request.strength,
        scheduler=scheduler,
        schedule=None if idle else schedule,
        geometry=plan_of(request, mask, defaults),
        reference=request.reference,
        safety_checker=request.safety_checker,
        deadline=request.deadline,
        savings=Savings.of(request, bundle),
        wording=Wording.of(request, bundle),
    )


def prepare(
    draft: Draft,
    schedule: Schedule,
    *,
    bundle: Bundle,
    models: Models,
    prompts: PromptEncoder,
    cache: ContentCache,
    clock: Clock,
) -> Job:
    """Encode prompts and pictures, and draw the noise a draft begins with."""
    reference, samples = draft.reference, draft.samples
    with clock.stage("prepare"):
        hole = draft.geometry.mask_in(draft.mask)
        moments = Moments(
            encoder=models.vae_encoder,
            cache=cache,
            pixels=draft.geometry.image_in(draft.image, models.scratch),
            hole=hole,
        )
        cells = masks.to_latents_nearest(hole) if reference else masks.to_latents(hole)
    with clock.stage("text_encoder"):
        negative = [draft.negative_prompt] if draft.guidance_scale > 1.0 else []
        told = draft.wording.told(prompts, [*negative, draft.prompt])
    generators = tuple(Generator(draft.seed + i) for i in range(samples))
    inpainting = bundle.unet_channels != bundle.latents.channels

    # The order of the draws below is diffusers' own: picture, noise, masked picture.
    def encode(said: Callable[[], Floats]) -> Floats:
        with clock.stage("vae_encoder"):
            known, to_latents = said(), models.vae_encoder.latents
            if not reference:
                return np.repeat(to_latents(known, None), samples, axis=0)
            return np.concatenate([to_latents(known, g.normal) for g in generators])

    from_noise = draft.strength == 1.0
    clean = None if inpainting and from_noise else encode(moments.whole)
    shape = (1, bundle.latents.channels, *draft.geometry.latent_shape)
    noise = np.concatenate([generator.normal(shape) for generator in generators])
    if from_noise or clean is None:
        latents = noise * np.float32(schedule.init_noise_sigma)
    else:
        latents = schedulers.add_noise(schedule, 0, clean, noise)
    conditioning, blend = None, None
    if inpainting or reference:  # a 4-channel reference draws its noise and leaves the rest
        masked = encode(moments.masked)
        if inpainting:
            repeated = np.repeat(cells, samples, axis=0)
            conditioning = tuple(np.concatenate([repeated, masked], axis=1))
    if not inpainting:
        assert clean is not None
        blend = Blend(mask=cells, kept=1 - cells, clean=clean, noise=noise)
    return Job(
        draft=draft,
        clock=clock,
        schedule=schedule,
        generators=generators,
        told=tuple({**text, **models.size_told(*hole.shape)} for text in told),
        conditioning=conditioning,
        blend=blend,
        state=SolverState(latents=latents),
        room=Room(latents),
        deep=draft.savings.deep_features(bundle, rows=samples * len(told), shape=shape),
    )


def finish(job: Job, models: Models, checker: SafetyChecker | None) -> InpaintResult:
    """Decode the final latents, paste them into the picture, and check it where that was asked.

    Raises:
        SessionError: If the networks left values that are no numbers, or a check was asked for and
            cannot be made.
    """
    draft = job.draft
    made, scratch = draft.image[None], models.scratch
    if draft.samples > 1:
        made = np.repeat(made, draft.samples, axis=0)
    for picture, latents in zip(made, job.state.latents, strict=True):
        with job.clock.stage("vae_decoder"):
            planes = draft.savings.decoder(models)(latents[None])
        if not np.isfinite(planes).all():
            raise SessionError("the networks gave values that are not numbers; no picture is made")
        with job.clock.stage("paste"):
            generated = draft.geometry.image_out(to_levels(planes[0], scratch), scratch)
            if draft.reference:
                picture[:] = generated
            else:
                paste(picture, generated, draft.mask, draft.geometry.box, scratch)
    return _result(draft, made, job.clock, len(job.schedule), job.state.latents, checker)


def unchanged(draft: Draft, clock: Clock, checker: SafetyChecker | None) -> InpaintResult:
    """The result of a draft that asks for nothing to be done but, perhaps, the check."""
    images = np.repeat(draft.image[None], draft.samples, axis=0)
    return _result(draft, images, clock, 0, None, checker)


def _result(
    draft: Draft,
    images: npt.NDArray[np.uint8],
    clock: Clock,
    steps_run: int,
    latents: Floats | None,
    checker: SafetyChecker | None,
) -> InpaintResult:
    geometry, nsfw = draft.geometry, None
    if draft.safety_checker:
        with clock.stage("safety_checker"):
            nsfw = require(checker)(images)
    return InpaintResult(
        images=images,
        seed=draft.seed,
        num_inference_steps=draft.num_inference_steps,
        steps_run=steps_run,
        guidance_scale=draft.guidance_scale,
        scheduler=draft.scheduler,
        region=geometry.box,
        working_size=(geometry.padded_width, geometry.padded_height),
        timings=clock.timings(),
        latents=latents,
        nsfw=nsfw,
        plan=draft.plan,
    )


def _pictures(request: InpaintRequest) -> tuple[npt.NDArray[np.uint8], masks.Mask]:
    """The picture and the binary mask at the size of the result, both ours to keep."""
    height = request.height or request.image.shape[0]
    width = request.width or request.image.shape[1]
    own_size = request.reference or (request.region == "full" and request.working_size is None)
    for name, side in (("height", height), ("width", width)):
        if side < MIN_SIDE:
            raise InputError(name, f"of the picture is {side}; at least {MIN_SIDE} is needed")
        if side > MAX_SIDE and own_size:
            reason = f"cannot work on a {name} of {side}; at most {MAX_SIDE}, or take region mask"
            raise InputError("region", f"{request.region} {reason}")
    image = resize(request.image, width=width, height=height)
    if request.reference:
        if image is not request.image or request.mask.shape != image.shape[:2]:
            raise InputError("reference", "needs picture and mask at the size of the result")
        if width % VAE_SCALE_FACTOR or height % VAE_SCALE_FACTOR:
            raise InputError("reference", f"needs sides of multiples of 8, got {width}x{height}")
    if image is request.image:
        image = np.array(image, order="C")
    return image, masks.binarise(request.mask, width=width, height=height)


def first_step(request: InpaintRequest | Draft, steps: int) -> int:
    """How many leading steps ``strength`` leaves out.

    The reference rounds down and refuses to make no step; otherwise any strength above 0 makes
    at least one.
    """
    if request.reference:
        start = steps - min(int(steps * request.strength), steps)
        if start == steps:
            reason = f"is {request.strength}: with {steps} steps none is left"
            raise InputError("strength", reason)
        return start
    return steps - min(steps, math.ceil(steps * request.strength - 1e-9))
