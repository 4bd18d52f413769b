"""Every coercion and every error sentence of the request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.schedulers import SCHEDULERS
from service.errors import ApiError
from service.schema import InpaintBody, parse_json

REQUIRED = {"prompt": "a cat", "init_image": "https://a.example/i", "mask_image": "https://a/m"}


def parse(**values: Any) -> InpaintBody:
    return InpaintBody.parse(REQUIRED | values)


def test_defaults() -> None:
    body = InpaintBody.parse(REQUIRED)
    assert body.model_dump(exclude={"seed", *REQUIRED}) == {
        "negative_prompt": "",
        "width": 512,
        "height": 512,
        "samples": 1,
        "safety_checker": False,
        "strength": 0.7,
        "base64": False,
        "instant_response": False,
        "webhook": None,
        "track_id": None,
        "num_inference_steps": None,
        "guidance_scale": None,
        "scheduler": None,
        "output_format": "png",
        "region": "auto",
        "decoder": "full",
        "guidance_share": 1.0,
        "deep_cache_interval": 1,
        "working_size": None,
        "prompt_syntax": "plain",
        "text_layers_skipped": 0,
        "deadline_ms": None,
    }
    assert 0 <= body.seed < 2**32


@pytest.mark.parametrize("absent", [None, "", "  "])
def test_null_and_blank_are_absent_for_every_optional_field(absent: str | None) -> None:
    names = set(InpaintBody.model_fields) - set(REQUIRED)
    body = InpaintBody.parse(REQUIRED | dict.fromkeys(names, absent))
    default = InpaintBody.parse(REQUIRED)
    assert body.model_dump(exclude={"seed"}) == default.model_dump(exclude={"seed"})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("width", "512", 512),
        ("width", 64, 64),
        ("width", 1024, 1024),
        ("width", 513, 513),
        ("width", 512.0, 512),
        ("width", "512.0", 512),
        ("width", " 512 ", 512),
        ("width", "+512", 512),
        ("height", "5.12e2", 512),
        ("samples", "1", 1),
        ("samples", 4.0, 4),
        ("strength", "0.7", 0.7),
        ("strength", 0, 0.0),
        ("strength", 1, 1.0),
        ("seed", 0, 0),
        ("seed", "7", 7),
        ("seed", 2**53 - 1, 2**53 - 1),
        ("num_inference_steps", "30", 30),
        ("num_inference_steps", 50, 50),
        ("guidance_scale", "7.5", 7.5),
        ("guidance_scale", 1, 1.0),
        ("deadline_ms", "1500", 1500),
        ("base64", True, True),
        ("base64", "yes", True),
        ("base64", "YES", True),
        ("base64", "true", True),
        ("base64", "1", True),
        ("base64", 1, True),
        ("base64", 1.0, True),
        ("base64", False, False),
        ("base64", "no", False),
        ("base64", "False", False),
        ("base64", "0", False),
        ("base64", 0, False),
        ("safety_checker", "no", False),
        ("instant_response", "yes", True),
        ("track_id", "abc", "abc"),
        ("track_id", 0, 0),
        ("track_id", "0", "0"),
        ("track_id", 5.0, 5),
        ("negative_prompt", "bad quality", "bad quality"),
        ("output_format", "PNG", "png"),
        ("output_format", "jpeg", "jpg"),
        ("region", "mask", "mask"),
        ("scheduler", "euler_a", "euler_a"),
        ("scheduler", "DDIMScheduler", "ddim"),
        ("scheduler", "DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("webhook", "https://a.example/hook", "https://a.example/hook"),
    ],
)
def test_coercions(field: str, value: Any, expected: Any) -> None:
    found = getattr(parse(**{field: value}), field)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize("value", [None, -1, "-1", -1.0, ""])
def test_random_seeds(value: Any) -> None:
    assert len({parse(seed=value).seed for _ in range(20)}) > 1


NOT_INTEGERS: list[Any] = [
    "wide", 512.5, "512.5", True, [512], {}, "1_000", "0x200", "\u0665", 1e999
]  # fmt: skip
NOT_NUMBERS: list[Any] = ["high", True, [], "nan", "inf"]
NOT_BOOLEANS: list[Any] = ["maybe", 2, -1, 0.5, [], {}]
NOT_TEXTS: list[Any] = [5, True, ["a"], {"a": 1}]

SENTENCES: list[tuple[str, Any, str]] = [
    *(
        (name, value, f"The {name} must be an integer.")
        for name in ("width", "height", "samples", "seed")
        for value in NOT_INTEGERS
    ),
    *(
        (name, value, f"The {name} must be between 64 and 1024.")
        for name in ("width", "height")
        for value in (63, 1025, 0, -512, "2048", 10**400, 1e300, "-1")
    ),
    *(("samples", n, "The samples must be between 1 and 4.") for n in (0, 5, -1, "9")),
    ("seed", -2, f"The seed must be between -1 and {2**53 - 1}."),
    ("seed", 2**53, f"The seed must be between -1 and {2**53 - 1}."),
    *(("strength", x, "The strength must be between 0 and 1.") for x in (-0.1, 1.1, "2")),
    *(("strength", x, "The strength must be a number.") for x in NOT_NUMBERS),
    ("num_inference_steps", 0, "The num inference steps must be between 1 and 50."),
    ("num_inference_steps", 51, "The num inference steps must be between 1 and 50."),
    ("guidance_scale", 0.5, "The guidance scale must be between 1 and 20."),
    ("guidance_scale", 21, "The guidance scale must be between 1 and 20."),
    ("deadline_ms", 0, "The deadline ms must be between 1 and 600000."),
    ("width", "9" * 5000, "The width must be an integer."),
    *(
        (name, value, f"The {name.replace('_', ' ')} must be true or false.")
        for name in ("base64", "safety_checker", "instant_response")
        for value in NOT_BOOLEANS
    ),
    *(
        (name, value, f"The {name.replace('_', ' ')} must be a string.")
        for name in ("prompt", "init_image", "mask_image", "negative_prompt", "webhook")
        for value in NOT_TEXTS
    ),
    *(
        (name, "\ud800", f"The {name.replace('_', ' ')} must be valid Unicode text.")
        for name in ("prompt", "init_image", "negative_prompt", "track_id")
    ),
    ("track_id", ["a"], "The track id must be a string of at most 1024 characters."),
    ("track_id", "a" * 1025, "The track id must be a string of at most 1024 characters."),
    *(
        (
            name,
            "a" * 10_001,
            f"The {name.replace('_', ' ')} has 10001 characters; "
            "at most 10000 characters are allowed.",
        )
        for name in ("prompt", "negative_prompt")
    ),
    ("webhook", "ftp://a/b", "The webhook must be an http or https URL."),
    ("webhook", "nonsense", "The webhook must be an http or https URL."),
    ("track_id", 5.5, "The track id must be a string of at most 1024 characters."),
    ("scheduler", 5, "The scheduler must be a string."),
    ("scheduler", "abacus", f"The scheduler is 'abacus'; allowed: {', '.join(SCHEDULERS)}."),
    ("output_format", "gif", "The output format must be one of png, jpg."),
    ("region", "hole", "The region must be one of auto, full, mask."),
    ("decoder", "tiny", "The decoder must be one of full, fast."),
    ("guidance_share", 1.1, "The guidance share must be between 0 and 1."),
    ("deep_cache_interval", 21, "The deep cache interval must be between 1 and 20."),
    ("working_size", 56, "The working size must be between 64 and 1024."),
    ("working_size", 1032, "The working size must be between 64 and 1024."),
    ("working_size", "100", "The working size must be a multiple of 8."),
    ("prompt_syntax", "compel", "The prompt syntax must be one of plain, a1111."),
    ("text_layers_skipped", 33, "The text layers skipped must be between 0 and 32."),
    ("region", 5, "The region must be one of auto, full, mask."),
]


@pytest.mark.parametrize(("field", "value", "message"), SENTENCES)
def test_sentences(field: str, value: Any, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(**{field: value})
    assert (caught.value.status, caught.value.message) == (400, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "The prompt field is required."),
        ({"prompt": None}, "The prompt field is required."),
        ({"prompt": " \n"}, "The prompt field is required."),
        ({"prompt": "a"}, "The init image field is required."),
        ({"prompt": "a", "init_image": ""}, "The init image field is required."),
        ({"prompt": "a", "init_image": "b"}, "The mask image field is required."),
        ({"prompt": "a", "init_image": "b", "mask_image": ""}, "The mask image field is required."),
        ({"width": "wide", "samples": 9}, "The prompt field is required."),
        (REQUIRED | {"samples": 9, "width": 5}, "The width must be between 64 and 1024."),
    ],
)  # fmt: skip
def test_the_first_bad_field_is_named_the_required_ones_first(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ApiError) as caught:
        InpaintBody.parse(values)
    assert caught.value.message == message


UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@UNHURRIED
@given(st.dictionaries(st.sampled_from(sorted(InpaintBody.model_fields)), ANYTHING))
def test_every_value_is_taken_or_refused_in_one_sentence(values: dict[str, Any]) -> None:
    try:
        body = InpaintBody.parse(REQUIRED | values)
    except ApiError as error:
        answer: dict[str, Any] = {"message": error.message}
        assert (error.status, error.message[:4], error.message[-1]) == (400, "The ", ".")  # noqa: PT017
    else:
        answer = body.model_dump()
    json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()


def test_unknown_fields_are_ignored() -> None:
    assert parse(model_id="sdxl", enhance_prompt="yes", opacity=0.5, key="k").prompt == "a cat"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nothing", b'{"a": NaN}', b'{"a": Infinity}', b"\xff\xfe", b"[" * 100_000,
     b'{"a": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(ApiError, match="not valid JSON") as caught:
        parse_json(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("value", [[], "text", 5, None, True])
def test_what_is_not_an_object(value: Any) -> None:
    with pytest.raises(ApiError, match="must be a JSON object"):
        parse_json(json.dumps(value).encode())
