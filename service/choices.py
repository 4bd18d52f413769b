"""What a client may choose beyond the contract: what it gives up for a quicker picture, and how its
texts are read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from engine import Bundle, InputError
from engine.prompt_syntax import parse
from engine.savings import Savings
from engine.wording import Wording, refuse_deep
from service.errors import refused_value
from service.schema import Body

NAMES: Final = {"vae": "decoder", "clip_skip": "text_layers_skipped"}
"""Where the engine's name is another one: clients of the hosted service may send a ``vae``, and a
``clip_skip`` that counts otherwise."""

_USUAL: Final = asdict(Savings()) | asdict(Wording())


def choices_of(body: Body) -> dict[str, Any]:
    """What was asked for, by the names of the engine's request."""
    return {name: getattr(body, NAMES.get(name, name)) for name in _USUAL}


def choices_told(body: Body) -> dict[str, Any]:
    """What an answer's meta says of it: that which is not as usual."""
    chosen = choices_of(body).items()
    return {NAMES.get(name, name): value for name, value in chosen if value != _USUAL[name]}


def refuse_unfit(body: Body, bundle: Bundle) -> None:
    """Say so at once when a request asks for a network that the model does not have, a size that it
    is not made for, or texts that it cannot encode, or when a prompt is not in its syntax.

    Raises:
        ApiError: 400 with the field, its value and what is allowed.
    """
    chosen = choices_of(body)
    wording = {name: chosen.pop(name) for name in asdict(Wording())}
    try:
        Savings(**chosen).refuse_unfit(bundle)
        refuse_deep(bundle, **wording)
        if body.prompt_syntax == "a1111":
            parse("prompt", body.prompt)
            parse("negative_prompt", body.negative_prompt)
    except InputError as exc:
        raise refused_value(exc, field=NAMES.get(exc.field)) from exc
