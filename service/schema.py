"""What a client may ask: the contract's request, its coercions and its error sentences.

Clients of the hosted API send numbers as text, booleans as "yes" and "no", and null for what they
leave out; all of that is taken. Unknown fields are ignored. The first bad field is the one that is
named, the required ones first.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from engine.plan import Vae
from engine.prompt_syntax import PromptSyntax
from engine.request import (
    MAX_CLIP_SKIP,
    MAX_DEEP_CACHE_INTERVAL,
    MAX_PROMPT_CHARACTERS,
    MAX_SIDE,
    MIN_SIDE,
    WORKING_STEP,
    Region,
)
from engine.schedulers import DIFFUSERS_CLASSES, SCHEDULERS
from service.errors import ApiError, FetchError, words
from service.urls import Target

MAX_SEED: Final = 2**53 - 1
RANDOM_SEEDS: Final = 2**32
MAX_TRACK_ID_CHARACTERS: Final = 1024

CLASSES: Final = {kind: name for name, kind in reversed(DIFFUSERS_CLASSES.items())}
"""The engine's names of schedulers by diffusers' classes, which clients of the hosted API send."""

TRUE: Final = ("true", "yes", "1")
FALSE: Final = ("false", "no", "0")
_SHOWN_CHARACTERS: Final = 100


def _refuse(info: ValidationInfo, sentence: str) -> ValueError:
    return ValueError(f"The {words(info.field_name or 'request')} {sentence}")


def as_boolean(value: Any, info: ValidationInfo) -> bool:
    """A JSON boolean, or one of the words and numbers that clients write for it."""
    word = value.strip().lower() if isinstance(value, str) else value
    if isinstance(word, bool):
        return word
    text = str(int(word)) if word in (0, 1) else word
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise _refuse(info, "must be true or false.")


def as_text(value: Any, info: ValidationInfo) -> str:
    """Text that can be written down as UTF-8."""
    if not isinstance(value, str):
        raise _refuse(info, "must be a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refuse(info, "must be valid Unicode text.") from None
    return value


def as_prompt(value: Any, info: ValidationInfo) -> str:
    """Text that is not too long for the engine."""
    text = as_text(value, info)
    if len(text) > MAX_PROMPT_CHARACTERS:
        allowed = f"at most {MAX_PROMPT_CHARACTERS} characters are allowed"
        raise _refuse(info, f"has {len(text)} characters; {allowed}.")
    return text


def as_webhook(value: Any, info: ValidationInfo) -> str:
    """The address of a receiver."""
    text = as_text(value, info)
    try:
        Target.parse(text)
    except FetchError:
        raise _refuse(info, "must be an http or https URL.") from None
    return text


def as_track_id(value: Any, info: ValidationInfo) -> str | int:
    """Short text, or an integer that every JSON parser keeps."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_SEED:
        return value
    if not isinstance(value, str) or len(value) > MAX_TRACK_ID_CHARACTERS:
        raise _refuse(info, f"must be a string of at most {MAX_TRACK_ID_CHARACTERS} characters.")
    return as_text(value, info)


def _number(value: Any) -> float | int | None:
    """The number in a JSON value, or None: booleans, NaN and infinities are no numbers here."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        if isinstance(value, str):
            text = value.strip()
            if not text.isascii() or "_" in text:
                return None
            value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


class Range:
    """Bounds of a number: coerces it, and says which bounds were left. With ``step``, which divides
    ``low``, an integer must be a multiple of it."""

    def __init__(self, low: int, high: int, *, integral: bool = True, step: int = 1) -> None:
        self.low, self.high, self.integral, self.step = low, high, integral, step

    def __call__(self, value: Any, info: ValidationInfo) -> float | int:
        number = _number(value)
        if number is None or (self.integral and number != math.floor(number)):
            raise _refuse(info, f"must be {'an integer' if self.integral else 'a number'}.")
        if not self.low <= number <= self.high:
            raise _refuse(info, f"must be between {self.low} and {self.high}.")
        if self.step > 1 and number % self.step:
            raise _refuse(info, f"must be a multiple of {self.step}.")
        return int(number) if self.integral else float(number)


def as_scheduler(value: Any, info: ValidationInfo) -> str:
    """The engine's name of a scheduler that is given by that name or by diffusers' class."""
    name = as_text(value, info).strip()
    name = CLASSES.get(name, name)
    if name not in SCHEDULERS:
        raise _refuse(info, f"is {name[:_SHOWN_CHARACTERS]!r}; allowed: {', '.join(SCHEDULERS)}.")
    return name


class Word:
    """A word out of a few, in any case; some of them have other spellings."""

    def __init__(self, *words: str, spellings: Mapping[str, str] | None = None) -> None:
        self.words, self.spellings = words, spellings or {}

    def __call__(self, value: Any, info: ValidationInfo) -> str:
        word = value.strip().lower() if isinstance(value, str) else ""
        word = self.spellings.get(word, word)
        if word not in self.words:
            raise _refuse(info, f"must be one of {', '.join(self.words)}.")
        return word


Text = Annotated[str, BeforeValidator(as_text)]
Prompt = Annotated[str, BeforeValidator(as_prompt)]
Boolean = Annotated[bool, BeforeValidator(as_boolean)]
Side = Annotated[int, BeforeValidator(Range(64, 1024))]
Seed = Annotated[int, BeforeValidator(Range(-1, MAX_SEED))]


class Body(BaseModel):
    """What all three picture routes take, without the key.

    After validation ``seed`` is the one that will be used: it is fixed when a request is accepted,
    so that doing the work again gives the same picture.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=False)

    prompt: Prompt
    negative_prompt: Prompt = ""
    width: Side = 512
    height: Side = 512
    samples: Annotated[int, BeforeValidator(Range(1, 4))] = 1
    safety_checker: Boolean = False
    base64: Boolean = False
    seed: Seed = Field(default=-1)
    instant_response: Boolean = False
    webhook: Annotated[str | None, BeforeValidator(as_webhook)] = None
    track_id: Annotated[str | int | None, BeforeValidator(as_track_id)] = None
    num_inference_steps: Annotated[int | None, BeforeValidator(Range(1, 50))] = None
    guidance_scale: Annotated[float | None, BeforeValidator(Range(1, 20, integral=False))] = None
    scheduler: Annotated[str | None, BeforeValidator(as_scheduler)] = None
    output_format: Annotated[
        Literal["png", "jpg"], BeforeValidator(Word("png", "jpg", spellings={"jpeg": "jpg"}))
    ] = "png"
    decoder: Annotated[Vae, BeforeValidator(Word("full", "fast"))] = "full"
    guidance_share: Annotated[float, BeforeValidator(Range(0, 1, integral=False))] = 1.0
    deep_cache_interval: Annotated[int, BeforeValidator(Range(1, MAX_DEEP_CACHE_INTERVAL))] = 1
    working_size: Annotated[
        int | None, BeforeValidator(Range(MIN_SIDE, MAX_SIDE, step=WORKING_STEP))
    ] = None
    prompt_syntax: Annotated[PromptSyntax, BeforeValidator(Word("plain", "a1111"))] = "plain"
    text_layers_skipped: Annotated[int, BeforeValidator(Range(0, MAX_CLIP_SKIP))] = 0
    deadline_ms: Annotated[int | None, BeforeValidator(Range(1, 600_000))] = None

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, values: Any) -> Any:
        """Null and blank text mean that a field was left out."""
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if not is_absent(value)}

    @property
    def pictures(self) -> Mapping[str, str]:
        """The pictures that came with the request, by field."""
        return {}

    @property
    def how_strong(self) -> float:
        """The share of the steps that is run."""
        return 1.0

    @property
    def where(self) -> Region:
        """The region to work on."""
        return "auto"

    def without_pictures(self) -> Self:
        """What is left of a request once its pictures, which may be megabytes, are in the store."""
        return self.model_copy(update=dict.fromkeys(self.pictures, ""))

    def to_document(self, *, root: str) -> str:
        """The checked request and the server's address as JSON text, to be kept."""
        body = self.model_dump_json(exclude_none=True)  # ten times as fast as ``json``
        return f'{{"body": {body}, "root": {json.dumps(root)}}}'

    @classmethod
    def from_document(cls, document: str) -> tuple[Self, str]:
        """The request and the server's address in a document of ``to_document``."""
        values = json.loads(document)
        return cls.parse(values["body"]), values["root"]

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Check the values of a request and fix its seed.

        Raises:
            ApiError: 400 with one sentence about the first bad field, the missing ones first.
        """
        try:
            body = cls.model_validate(values)
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_input=False)
            for error in errors:
                if error["type"] == "missing":
                    field = words(str(error["loc"][0]))
                    raise ApiError(400, f"The {field} field is required.") from None
            error = errors[0]
            field = str(error["loc"][0]) if error["loc"] else "request"
            message = str(error["ctx"]["error"]) if "ctx" in error else f"{field}: {error['msg']}"
            raise ApiError(400, message) from None
        seed = secrets.randbelow(RANDOM_SEEDS) if body.seed == -1 else body.seed
        return body.model_copy(update={"seed": seed})


class Text2ImgBody(Body):
    """The body of ``POST /api/v6/realtime/text2img``: everything is painted, from nothing."""


class Img2ImgBody(Body):
    """The body of ``POST /api/v6/realtime/img2img``: everything is painted, over a picture."""

    init_image: Text
    strength: Annotated[float, BeforeValidator(Range(0, 1, integral=False))] = 0.7

    @property
    def pictures(self) -> Mapping[str, str]:
        return {"init_image": self.init_image}

    @property
    def how_strong(self) -> float:
        return self.strength


class InpaintBody(Img2ImgBody):
    """The body of ``POST /api/v6/realtime/inpaint``: the white part of the mask is painted."""

    mask_image: Text
    region: Annotated[Region, BeforeValidator(Word("auto", "full", "mask"))] = "auto"

    @property
    def pictures(self) -> Mapping[str, str]:
        return {"init_image": self.init_image, "mask_image": self.mask_image}

    @property
    def where(self) -> Region:
        return self.region


KINDS: Final[Mapping[str, type[Body]]] = {
    "inpaint": InpaintBody,
    "img2img": Img2ImgBody,
    "text2img": Text2ImgBody,
}
"""The picture routes by their names in the path."""


def is_absent(value: Any) -> bool:
    """Whether a value means that its field was left out."""
    return value is None or (isinstance(value, str) and not value.strip())


PARSED_AT_ONCE: Final = 1 << 16
"""Bytes of JSON that are parsed on the event loop: however odd, they take a few milliseconds."""


def parse_json(body: bytes | str, what: str = "request body") -> Mapping[str, Any]:
    """The JSON object in a request body, whatever its content type says.

    Args:
        body: Its text.
        what: Whose text it is, for the error's sentence.

    Raises:
        ApiError: 400 when it is no JSON object.
    """
    try:
        values = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:  # JSON and Unicode errors are ValueErrors
        raise ApiError(400, f"The {what} is not valid JSON.") from exc
    if not isinstance(values, dict):
        raise ApiError(400, f"The {what} must be a JSON object.")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
