"""The OpenAPI 3.1 description of the HTTP face, served at ``/openapi.json``.

The component schemas bear the names of the contract's own page, and everything that is valid there
is valid here but for the bounds that the page leaves open. What requests look like is read off the
models of ``service.schema``, so that a bound cannot be changed in one place only. Knows nothing of
HTTP servers; may import ``service.schema``, ``service.storage``, ``service.urls`` and the engine's
limits.
"""

from __future__ import annotations

from service.openapi.document import PATH, document

__all__ = ["PATH", "document"]
