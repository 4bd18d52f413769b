"""What the fields of requests and answers mean, in one place."""

from __future__ import annotations

from typing import Final

from engine.schedulers import SCHEDULERS

_PICTURE: Final = (
    "an http or https URL, a data URI, or bare base64; PNG or JPEG by its bytes. It is resized "
    "to width x height."
)

INFO: Final = (
    "Fills the masked part of a picture from a text prompt. A client of the hosted realtime API "
    'changes its base URL and nothing else. Numbers may come as text, booleans as "yes" and '
    '"no", and null or blank text means that an optional field is left out; fields that are not '
    "described here are ignored. The key may come in a header instead: `key: ...` or "
    "`Authorization: Bearer ...`."
)

FIELDS: Final = {
    "key": "Your API key. It may be sent in a header instead.",
    "prompt": "What shall appear in the picture.",
    "negative_prompt": "What shall not appear in the picture.",
    "init_image": f"The picture: {_PICTURE}",
    "mask_image": f"The mask: {_PICTURE} White is repainted, black is kept.",
    "width": "Width of the result in pixels; any integer between the bounds.",
    "height": "Height of the result in pixels; any integer between the bounds.",
    "samples": "How many pictures are made; picture i uses seed + i.",
    "safety_checker": "Replace a picture that the NSFW checker flags by a black one.",
    "base64": "Answer with the pictures as base64 text instead of links.",
    "seed": "The same seed gives the same picture; null or -1 takes a random one.",
    "instant_response": "Answer `processing` at once instead of waiting for the picture.",
    "webhook": "An http or https URL that the result is posted to when the picture is done.",
    "track_id": "Comes back in the webhook's call, and in the answer's meta.",
    "strength": "How much of the picture is forgotten: 0 keeps it, 1 keeps nothing.",
    "num_inference_steps": "Denoising steps; the model's own number where left out. With "
    "deadline_ms it is an upper bound.",
    "guidance_scale": "How closely the prompt is followed; the model's own value where left out.",
    "scheduler": f"The sampler: {', '.join(SCHEDULERS)}, or the name of diffusers' class; "
    "the model's own where left out.",
    "output_format": "The format of the result: png or jpg.",
    "decoder": "Which decoder makes the picture: the full one, or the fast one where the model has "
    "it, which takes less time and blurs fine detail a little. 400 where the model has none.",
    "guidance_share": "The share of the steps, from the first, that are made with guidance; those "
    "after it cost half and follow the prompt alone.",
    "deep_cache_interval": "The whole network runs at every so many steps, its outer layers alone "
    "at those between, which take a fraction of the time; 1 runs it whole at every step. Above 1, "
    "400 where the model has no such layers.",
    "working_size": "Pixels to which the longer side of the region is brought for the networks, a "
    "multiple of 8: a smaller one takes less time and loses fine detail in what is filled; the "
    "result has its width and height, and what is kept stays as it is. 400 above what the model is "
    "made for; where left out, the size that suits the model best.",
    "prompt_syntax": "How both prompts are read: plain takes every character as it is and cuts "
    "what is longer than the text encoder takes; a1111 reads (word), (word:1.3), [word] and BREAK "
    "as AUTOMATIC1111's web UI does, and takes up to eight times that length.",
    "text_layers_skipped": "How many of the text encoder's last layers are left out, as diffusers "
    "counts its clip_skip: 1 is what the web UI calls 2. Above 0, 400 where the model was not made "
    "for it.",
    "deadline_ms": "Milliseconds, from when the request is accepted, after which the picture is of "
    "no use: it is given up then. Where it would come too late as asked for, fewer steps are made, "
    "the fast decoder is used where the model has one, or the working size is smaller, in this "
    "order of preference, from what this server has measured; meta.plan says what was chosen. "
    "Where no way is quick enough, the request fails at once.",
    "region": "What is worked on: the whole picture (full), the box round the mask with some "
    "context (mask), or whichever suits (auto).",
    "base64_string": "A PNG or JPEG picture of at most 5 MB as a data URI or bare base64.",
}
"""The fields of requests."""

ANSWERS: Final = {
    "generationTime": "Seconds of work, without the time in the queue.",
    "id": "The number of the request: fetch takes it.",
    "output": "A link per picture; with base64, the pictures themselves as text.",
    "proxy_links": "The same as output.",
    "meta": "What was asked, and what was chosen where nothing was asked.",
    "plan": "With deadline_ms: the steps, the working size [width, height], the decoder (vae) and "
    "the time that were chosen, and whether that is less than what was asked for.",
    "nsfw_content_detected": "Whether the safety checker flagged a picture of the request.",
    "tip": "A sentence for people.",
    "eta": "Seconds until the picture is thought to be done.",
    "processing_message": "A sentence for people.",
    "fetch_result": "Where to ask for the result.",
    "no_output": "Nothing yet.",
    "future_links": "Where the pictures will be; until then these links answer 404.",
    "message": "What was wrong, in one sentence.",
    "error_id": "The number of a request that failed after it was accepted.",
    "retry_after": "Seconds after which to try again.",
}
"""The fields of answers."""
