"""The realtime stream: a WebSocket on which one picture is edited, and the newest edit wins.

``/api/v6/realtime/stream``, and the same under ``/api/v1/enterprise/realtime``.

**What a client sends.** Text frames, each a JSON object. The first holds a whole request, with the
fields of ``POST /api/v6/realtime/inpaint`` and the same rules; the key may come in the ``key`` or
``Authorization`` header instead. Each later one holds what changes; null takes a field back.
Messages are *edits* and are numbered from 1 in the order they come, whatever becomes of them.
What is given up for speed may change from edit to edit too (``working_size``, ``decoder``,
``guidance_share``, ``deep_cache_interval``, steps and ``deadline_ms``): a client can sketch at a
small size, and take those back with null for the picture that it keeps.
Pictures may come as bytes: ``"binary": ["mask_image"]`` says that so many binary frames follow, one
per field named, and the message is whole with the last of them. ``webhook`` and
``instant_response`` are refused, since nothing is queued: no edit is written down, and none
outlives its connection.

**What comes back.** Text frames, each a JSON object with ``type`` and ``edit``. ``binary: N`` says
that N binary frames with pictures follow; where the request says ``base64``, the pictures stand in
``output`` instead.

    preview    step, steps, width, height: the whole picture, small, its hole as foreseen now; a
               JPEG. None where safety_checker is asked for, since only what is finished is checked.
    result     generationTime, nsfw_content_detected, meta: as the HTTP answer says them; pictures
               in the request's output_format
    cancelled  a newer edit came, or the stream ends
    error      status, message: one sentence, with the status that HTTP would have

Every edit gets exactly one of the last three, in the order of the edits, and nothing after it. An
edit that is not the newest any more stops at its next step. A message that is refused changes
nothing; after an edit that could not be done, what the last result was made of counts again. The
stream goes on; a refused key ends it, and so does what is no message at all. Previews are left out
where the client does not read as fast as they come; the rest waits for it, but not for ever.

Closing codes: 1000 idle, 1008 refused, 1009 a message is too large, 1011 the client does not answer
or our fault, 1012 the server stops, 1013 too many streams.

    endpoint.py    the handshake: origin, key, how many
    connection.py  one connection: reads, works, writes
    outbox.py      the order of what is written, and what may be left out
    messages.py    frames to messages, messages to requests
    pictures.py    the pictures that are kept, and small ones for previews
    edits.py       one edit, from request to outcome
    protocol.py    what uvicorn needs for it
"""

from service.stream.endpoint import Streams

__all__ = ["Streams"]
