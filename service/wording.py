"""How a client's texts are read: their syntax, and how deep they are encoded."""

from __future__ import annotations

from typing import Any, Final

from engine import Bundle, InputError
from engine.prompt_syntax import parse
from engine.wording import Wording, refuse_deep
from service.errors import refused_value
from service.schema import Body

NAMES: Final = {"clip_skip": "text_layers_skipped"}
"""Where the engine's name is another one: clients of the hosted service send ``clip_skip``, which
counts otherwise there."""


def wording_of(body: Body) -> dict[str, Any]:
    """What was asked for, by the names of the engine's request."""
    return {"prompt_syntax": body.prompt_syntax, "clip_skip": body.text_layers_skipped}


def wording_told(body: Body) -> dict[str, Any]:
    """What an answer's meta says of it: that which is not as usual."""
    usual = Wording()
    return {
        NAMES.get(name, name): value
        for name, value in wording_of(body).items()
        if value != getattr(usual, name)
    }


def refuse_unreadable_text(body: Body, bundle: Bundle) -> None:
    """Say so at once when a prompt is not in its syntax, or the model cannot encode it as asked.

    Raises:
        ApiError: 400 with the field, its value and what is allowed.
    """
    try:
        refuse_deep(bundle, **wording_of(body))
        if body.prompt_syntax == "a1111":
            parse("prompt", body.prompt)
            parse("negative_prompt", body.negative_prompt)
    except InputError as exc:
        raise refused_value(exc, field=NAMES.get(exc.field)) from exc
