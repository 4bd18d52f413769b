"""How a request's texts are read: their syntax, and how deep they are encoded.

Unless something else is asked for, diffusers' way: one chunk, what is beyond it is cut, every
character is text. Either way it is a property of the request alone: the picture does not depend on
the company it was made in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from engine.bundle import Bundle
from engine.errors import InputError
from engine.models import HIDDEN_STATES, Told
from engine.prompt import PromptEncoder
from engine.prompt_chunks import pad_to_longest
from engine.prompt_syntax import PromptSyntax
from engine.request import InpaintRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The choices of one request; see the fields of the same names of ``InpaintRequest``."""

    prompt_syntax: PromptSyntax = "plain"
    clip_skip: int = 0

    @classmethod
    def of(cls, request: InpaintRequest, bundle: Bundle) -> Wording:
        """The choices of a request.

        Raises:
            InputError: If the bundle's text encoder cannot leave out so many layers, or there are
                two and weights are asked for.
        """
        syntax = request.prompt_syntax
        refuse_deep(bundle, prompt_syntax=syntax, clip_skip=request.clip_skip)
        return cls(prompt_syntax=request.prompt_syntax, clip_skip=request.clip_skip)

    def told(self, prompts: PromptEncoder, texts: Sequence[str]) -> tuple[Told, ...]:
        """What the UNet is told of the negative prompt, if any, and of the prompt, all embeddings
        of one length.

        ``plain`` leaves out layers for the prompt alone, as diffusers does; ``a1111`` for both, as
        the web UI does, and the shorter one is followed by embeddings of the empty prompt.

        Args:
            prompts: Encodes them.
            texts: The prompt is the last.
        """
        *negative, prompt = texts
        if self.prompt_syntax == "plain":
            return (*map(prompts.negative, negative), prompts(prompt, clip_skip=self.clip_skip))
        fields = [*(("negative_prompt", text) for text in negative), ("prompt", prompt)]
        encoded = [prompts.weighted(*field, clip_skip=self.clip_skip) for field in fields]
        empty = partial(prompts.weighted, "prompt", "", clip_skip=self.clip_skip)
        return tuple({HIDDEN_STATES: hidden} for hidden in pad_to_longest(encoded, empty))


def refuse_deep(bundle: Bundle, *, prompt_syntax: PromptSyntax, clip_skip: int) -> None:
    """Say so when more layers are to be left out than a bundle's text encoder can, or weights are
    asked for that two text encoders are to follow.

    Raises:
        InputError: With the value and what is allowed.
    """
    if prompt_syntax != "plain" and len(bundle.text_encoders) > 1:
        reason = "the model has two text encoders; allowed: plain"
        raise InputError("prompt_syntax", f"is {prompt_syntax!r}, but {reason}")
    most = bundle.clip_skips
    if clip_skip > most:
        made = f"the model was made for 0 to {most}" if most else "the model was made without it"
        reason = f"is {clip_skip}, but {made} (edgefill export --clip-skip N)"
        raise InputError("clip_skip", reason)
