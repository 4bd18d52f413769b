"""What a client may give up for a quicker picture, where the model can."""

from __future__ import annotations

from typing import Any, Final

from engine import Bundle, InputError
from engine.savings import Savings
from service.errors import refused_value
from service.schema import Body

NAMES: Final = {"vae": "decoder"}
"""Where the engine's name is another one: clients of the hosted service may send a ``vae``."""


def savings_of(body: Body) -> dict[str, Any]:
    """What was asked for, by the names of the engine's request."""
    return {
        "vae": body.decoder,
        "guidance_share": body.guidance_share,
        "deep_cache_interval": body.deep_cache_interval,
        "working_size": body.working_size,
    }


def savings_told(body: Body) -> dict[str, Any]:
    """What an answer's meta says of it: that which is not as usual."""
    usual = Savings()
    return {
        NAMES.get(name, name): value
        for name, value in savings_of(body).items()
        if value != getattr(usual, name)
    }


def refuse_unknown(body: Body, bundle: Bundle) -> None:
    """Say so at once when a request asks for a network that the model does not have, or a size that
    it is not made for.

    Raises:
        ApiError: 400 with the field, its value and what is allowed.
    """
    try:
        Savings(**savings_of(body)).refuse_unfit(bundle)
    except InputError as exc:
        raise refused_value(exc, field=NAMES.get(exc.field)) from exc
