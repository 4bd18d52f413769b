"""What goes in and what comes out: ``InpaintRequest``, ``InpaintResult``, ``Timings``.

Values are checked when the request is made, so that a bad one is refused before it can occupy the
loop; everything that depends on the bundle is checked in ``engine.job``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.plan import Plan, Vae
from engine.prompt_syntax import PromptSyntax, parse

Region = Literal["auto", "full", "mask"]

MIN_SIDE: Final = 64
MAX_SIDE: Final = 1024
WORKING_STEP: Final = 8
MAX_PICTURE_SIDE: Final = 16384
MAX_SAMPLES: Final = 4
MAX_STEPS: Final = 200
MAX_GUIDANCE: Final = 50.0
MAX_DEEP_CACHE_INTERVAL: Final = 20
MAX_PROMPT_CHARACTERS: Final = 10_000
MAX_CLIP_SKIP: Final = 32
MAX_SEED: Final = 2**53 - 1
MIN_DEADLINE: Final = 0.001
MAX_DEADLINE: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InpaintRequest:
    """One picture to fill.

    Attributes:
        image: The picture, (H, W, 3) uint8 RGB.
        mask: (H', W') uint8; 128 and above is repainted, below is kept. Another size than the
            picture's is resized to it.
        prompt: What shall appear in the hole; empty lets the model continue the background.
        negative_prompt: What shall not appear; used when ``guidance_scale`` is above 1.
        width: Width of the result in pixels, 64 to 1024; the picture's own where None.
        height: Height of the result in pixels, 64 to 1024; the picture's own where None.
        samples: Number of pictures, 1 to 4; picture ``i`` is made with ``seed + i``.
        seed: 0 to 2**53 - 1; a random one where None. The one used is in the result. Seeds equal
            modulo 2**32 give the same noise, as they do in PyTorch's CPU generator.
        strength: 0 to 1: the share of the steps that is run, 1 forgets what lay in the hole.
        num_inference_steps: Denoising steps, 1 to 200; the bundle's default where None.
        guidance_scale: 0 to 50; at 1 and below the negative prompt is not used and a step costs
            half. The bundle's default where None.
        scheduler: A name of ``engine.schedulers.SCHEDULERS``; the bundle's default where None.
        region: ``"full"`` works on the whole picture, ``"mask"`` on a box round the mask with
            context, ``"auto"`` chooses.
        working_size: Pixels to which the longer side of the region is brought for the networks, a
            multiple of 8 from 64 to the bundle's ``defaults.max_size``; what they make is brought
            back to the region's own size, and pixels outside the mask stay as they are. The time of
            a step falls at least with the area, and fine detail of what is filled is lost. Where
            None, the size that the model is at its best at; with ``"full"``, the picture's own.
        reference: Do exactly what diffusers' StableDiffusionInpaintPipeline does for one picture
            with ``torch.Generator("cpu").manual_seed(seed)``, without care for what lies outside
            the mask; the picture's sides must be multiples of 8. Several samples are so many
            single pictures.
        safety_checker: Say of each finished picture whether it is not safe for work. Nothing is
            done to a flagged picture. In reference mode too, where the checker sees the picture
            that it sees in diffusers' pipeline.
        deadline: Seconds from submission, 0.001 to 3600, after which the pictures are of no use.
            Where they would come too late as asked for, fewer steps are made, the working size is
            smaller, or the fast decoder is used; ``InpaintResult.plan`` says what was chosen. With
            a deadline that cannot be kept the request ends with ``DeadlineMissed``, at once or
            between two steps. Not in reference mode.
        vae: Which decoder of the bundle makes the picture: ``"full"``, or ``"fast"`` where the
            bundle has one, which blurs fine detail a little.
        guidance_share: 0 to 1: the share of the steps that are run, from the first, that are made
            with guidance; those after it follow the prompt alone and cost half, since there the two
            predictions hardly differ (adaptive guidance, arXiv 2312.12487).
        deep_cache_interval: 1 to 20: the whole UNet runs at the first step and at every so many
            after it; at the others its outer layers run on the deep feature of the last whole run
            (DeepCache, arXiv 2312.00858). Above 1, the bundle must have a shallow UNet.
        prompt_syntax: ``"plain"`` takes both prompts as they are and cuts them at the length of the
            text encoder; ``"a1111"`` reads weights such as ``(word:1.3)`` and takes up to 8 times
            that length; see ``engine.prompt_syntax`` and ``engine.prompt_chunks``.
        clip_skip: 0 to 32: how many of the text encoder's last layers are left out, as diffusers
            counts (the web UI's "clip skip 2" is 1). Above 0, the bundle must be made for it. Of
            plain prompts ``prompt`` alone is encoded so, as diffusers does.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    samples: int = 1
    seed: int | None = None
    strength: float = 1.0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    region: Region = "auto"
    working_size: int | None = None
    reference: bool = False
    safety_checker: bool = False
    deadline: float | None = None
    vae: Vae = "full"
    guidance_share: float = 1.0
    deep_cache_interval: int = 1
    prompt_syntax: PromptSyntax = "plain"
    clip_skip: int = 0

    def __post_init__(self) -> None:
        _check_array("image", self.image, "(H, W, 3)")
        _check_array("mask", self.mask, "(H, W)")
        for field, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if not isinstance(text, str):
                raise InputError(field, f"must be text, got {type(text).__name__}")
            if len(text) > MAX_PROMPT_CHARACTERS:
                allowed = f"at most {MAX_PROMPT_CHARACTERS} characters are allowed"
                raise InputError(field, f"has {len(text)} characters; {allowed}")
            try:
                text.encode()
            except UnicodeEncodeError as exc:
                raise InputError(field, f"is not valid Unicode: {exc.reason}") from exc
        for field, side in (("width", self.width), ("height", self.height)):
            if side is not None:
                _check_integer(field, side, MIN_SIDE, MAX_SIDE)
        _check_integer("samples", self.samples, 1, MAX_SAMPLES)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, MAX_SEED)
        _check_number("strength", self.strength, 0.0, 1.0)
        if self.num_inference_steps is not None:
            _check_integer("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        if self.guidance_scale is not None:
            _check_number("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE)
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            raise InputError("scheduler", f"must be a name, got {self.scheduler!r}")
        if self.working_size is not None:
            _check_working_size(self.working_size, reference=self.reference)
        _check_number("guidance_share", self.guidance_share, 0.0, 1.0)
        interval = self.deep_cache_interval
        _check_integer("deep_cache_interval", interval, 1, MAX_DEEP_CACHE_INTERVAL)
        for field in ("width", "height", "samples", "seed", "num_inference_steps", "working_size"):
            _make_plain(self, field, int)
        _make_plain(self, "deep_cache_interval", int)
        _check_integer("clip_skip", self.clip_skip, 0, MAX_CLIP_SKIP)
        _make_plain(self, "clip_skip", int)
        if self.deadline is not None:
            _check_number("deadline", self.deadline, MIN_DEADLINE, MAX_DEADLINE)
            if self.reference:
                raise InputError(
                    "deadline", "cannot be kept in reference mode, where nothing is left out"
                )
        for field in ("strength", "guidance_scale", "deadline", "guidance_share"):
            _make_plain(self, field, float)
        for field, word, words in (
            ("region", self.region, Region),
            ("vae", self.vae, Vae),
            ("prompt_syntax", self.prompt_syntax, PromptSyntax),
        ):
            if word not in get_args(words):
                allowed = ", ".join(get_args(words))
                raise InputError(field, f"is {word!r}; allowed: {allowed}")
        if self.prompt_syntax == "a1111":
            parse("prompt", self.prompt)
            parse("negative_prompt", self.negative_prompt)
        if not isinstance(self.safety_checker, bool):
            raise InputError("safety_checker", f"is {self.safety_checker!r}; must be a bool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds spent per stage; ``total`` is from submission to result and includes waiting."""

    queue: float
    prepare: float
    text_encoder: float
    vae_encoder: float
    unet: float
    vae_decoder: float
    paste: float
    safety_checker: float = 0.0
    total: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InpaintResult:
    """The filled pictures and how they were made.

    Attributes:
        images: (samples, height, width, 3) uint8 RGB.
        seed: The seed of the first picture; picture ``i`` used ``seed + i``.
        num_inference_steps: Steps of the schedule: those asked for, or of the plan.
        steps_run: UNet steps made: fewer where ``strength`` is below 1, one more for pndm, none
            where there was nothing to fill.
        guidance_scale: The guidance scale used.
        scheduler: The scheduler used.
        region: The box (x0, y0, x1, y1) in pixels of the result that was worked on.
        working_size: (width, height) in pixels at which the networks saw that box.
        timings: Seconds per stage.
        latents: (samples, channels, h, w) float32, the final latents before the VAE decoder; None
            where there was nothing to fill.
        nsfw: Whether each picture is not safe for work; None where that was not asked.
        plan: What was chosen for the deadline; None without one, and where there was nothing to
            fill.
    """

    images: npt.NDArray[np.uint8]
    seed: int
    num_inference_steps: int
    steps_run: int
    guidance_scale: float
    scheduler: str
    region: tuple[int, int, int, int]
    working_size: tuple[int, int]
    timings: Timings
    latents: npt.NDArray[np.float32] | None
    nsfw: tuple[bool, ...] | None = None
    plan: Plan | None = None


def _make_plain(request: InpaintRequest, field: str, kind: type[int] | type[float]) -> None:
    """Turn a numpy number into Python's own, so that it can neither overflow nor be changed."""
    value = getattr(request, field)
    if value is not None:
        object.__setattr__(request, field, kind(value))


def _check_array(field: str, array: object, form: str) -> None:
    rank = form.count(",") + 1
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != rank:
        found = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
        raise InputError(field, f"must be a uint8 array of shape {form}, got {found.strip()}")
    if rank == 3 and array.shape[2] != 3:
        raise InputError(field, f"must have 3 channels (RGB), got {array.shape[2]}")
    height, width = array.shape[:2]
    if min(height, width) < 1 or max(height, width) > MAX_PICTURE_SIDE:
        allowed = f"sides from 1 to {MAX_PICTURE_SIDE} are allowed"
        raise InputError(field, f"is {width}x{height} pixels; {allowed}")


def _check_integer(field: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(field, f"is {value!r}; must be an integer from {low} to {high}")
    if not low <= value <= high:
        raise InputError(field, f"is {value}; must be between {low} and {high}")


def _check_working_size(value: int, *, reference: bool) -> None:
    _check_integer("working_size", value, MIN_SIDE, MAX_SIDE)
    if value % WORKING_STEP:
        allowed = f"must be a multiple of {WORKING_STEP} from {MIN_SIDE} to {MAX_SIDE}"
        raise InputError("working_size", f"is {value}; {allowed}")
    if reference:
        raise InputError(
            "working_size", "cannot be chosen in reference mode, which keeps the picture's own"
        )


def _check_number(field: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise InputError(field, f"is {value!r}; must be a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise InputError(field, f"is {value}; must be between {low:g} and {high:g}")
