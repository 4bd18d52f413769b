"""The contract's own page, and validators of its schemas and of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import jsonschema_rs

from service import openapi

GOLDEN: Final = json.loads((Path(__file__).parent / "goldens/realtime_inpaint.json").read_text())
PAGE: Final[dict[str, Any]] = GOLDEN["openapi"]
EXAMPLE: Final[dict[str, Any]] = GOLDEN["example"]
OURS: Final = openapi.document()

ANSWERS: Final = {
    "success": "RealtimeImageGenerationSuccessResponse",
    "processing": "RealtimeImageGenerationProcessingResponse",
    "error": "RealtimeImageGenerationErrorResponse",
}


def validator(
    document: dict[str, Any], name: str, *, formats: bool = False
) -> jsonschema_rs.Draft202012Validator:
    """A validator of one of a document's component schemas."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=formats)


def check_answer(answer: dict[str, Any], *, formats: bool = True) -> None:
    """Hold an answer against the page's schema and ours.

    Args:
        answer: The body of one of the three kinds.
        formats: Whether what the page calls a URI must be one; pictures as text are none.
    """
    name = ANSWERS[answer["status"]]
    for document in (PAGE, OURS):
        validator(document, name, formats=formats).validate(answer)
