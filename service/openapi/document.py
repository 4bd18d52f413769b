"""The whole document: every route of the public HTTP face with its answers."""

from __future__ import annotations

from typing import Any, Final

from service.openapi.answers import (
    ERROR,
    PROCESSING,
    STANDARD_ERROR,
    SUCCESS,
    answer_schemas,
    standard_error,
)
from service.openapi.requests import REQUESTS, request_schemas
from service.openapi.words import INFO
from service.storage import CONTENT_TYPES, FOLDER

PATH: Final = "/openapi.json"
"""Where the document is served."""

VERSION: Final = "6.0.0"
"""Of the contract, as its own page counts."""

ROOTS: Final = {"/api/v6/realtime": "", "/api/v1/enterprise/realtime": "Enterprise"}
"""Both addresses of the family, and what sets their operations' names apart."""

Schema = dict[str, Any]

_SUMMARIES: Final = {
    "inpaint": "Paint the white part of a mask anew",
    "img2img": "Paint over a whole picture",
    "text2img": "Paint a picture from nothing",
}
_ERRORS: Final = {
    "400": STANDARD_ERROR,
    "401": STANDARD_ERROR,
    "404": "NotFound",
    "408": "Timeout",
    "413": "TooLarge",
    "429": "QueueFull",
    "500": STANDARD_ERROR,
    "503": "Unavailable",
}


def document(*, public_url: str | None = None) -> Schema:
    """The OpenAPI 3.1 document.

    Args:
        public_url: The address clients reach the server at; the document's own where None.
    """
    paths: dict[str, Schema] = {}
    for root, infix in ROOTS.items():
        for kind, request in REQUESTS.items():
            paths[f"{root}/{kind}"] = {"post": _paint(kind, request, infix=infix)}
        paths[f"{root}/fetch/{{id}}"] = _fetch(infix)
    paths["/api/v6/base64_to_url"] = {"post": _upload()}
    paths[f"/{FOLDER}/{{name}}"] = _output()
    yes = _json("It is so.", {"$ref": "#/components/schemas/HealthResponse"})
    paths["/livez"] = _get("live", "Whether the process answers", yes)
    paths["/readyz"] = _get("ready", "Whether a request would be served", yes, "503")
    itself = _json("This document.", {"type": "object"})
    paths[PATH] = _get("openapi", "What this server takes and answers", itself)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Edgefill",
            "description": INFO,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "version": VERSION,
        },
        "servers": [{"url": public_url or "/"}],
        "security": [],
        "paths": paths,
        "components": {
            "schemas": {**request_schemas(), **answer_schemas()},
            "responses": _responses(),
        },
    }


def _responses() -> dict[str, Schema]:
    return {
        STANDARD_ERROR: standard_error(
            "Bad request (invalid parameters), unauthorized (invalid API key), or internal server "
            "error."
        ),
        "NotFound": standard_error("There is no such request or picture, or not any more."),
        "Timeout": standard_error("The body of the request took too long to arrive."),
        "TooLarge": standard_error("The body of the request is too large."),
        "QueueFull": standard_error("The queue of this key is full.", retry=True),
        "Unavailable": standard_error(
            "Not ready, stopping, busy, or without what was asked for; or the picture was not, or "
            "cannot be, done by its deadline."
        ),
    }


def _paint(kind: str, request: str, *, infix: str) -> Schema:
    return {
        "operationId": f"{kind}{infix}",
        "summary": _SUMMARIES[kind],
        "requestBody": _body(request),
        "responses": {
            "200": _any_of_three("The pictures, or where to ask for them later."),
            **_errors("400", "401", "408", "413", "429", "500", "503"),
        },
    }


def _fetch(infix: str) -> Schema:
    """POST with the key in the body; GET with the key in a header, for those who cannot post."""
    responses = {
        "200": _any_of_three("The pictures, `processing`, or why the request failed."),
        **_errors("400", "401", "404", "408", "413", "500", "503"),
    }
    summary = "The result of a queued request, as often as it is asked for"
    key = {
        "name": "key",
        "in": "header",
        "required": True,
        "description": "Your API key.",
        "schema": {"type": "string", "minLength": 1},
    }
    return {
        "parameters": [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": "The id of the answer that said `processing`.",
                "schema": {"type": "string"},
            }
        ],
        "post": {
            "operationId": f"fetch{infix}",
            "summary": summary,
            "requestBody": _body("FetchRequest"),
            "responses": responses,
        },
        "get": {
            "operationId": f"fetch{infix}ByHeader",
            "summary": summary,
            "parameters": [key],
            "responses": responses,
        },
    }


def _upload() -> Schema:
    return {
        "operationId": "base64ToUrl",
        "summary": "Keep a picture and give a link to it, which init_image and mask_image take",
        "requestBody": _body("Base64ToUrlRequest"),
        "responses": {
            "200": _json("The link.", {"$ref": "#/components/schemas/Base64ToUrlResponse"}),
            **_errors("400", "401", "408", "413", "500", "503"),
        },
    }


def _output() -> Schema:
    contents = {
        kind: {"schema": {"type": "string"}} if kind.startswith("text/") else {}
        for kind in CONTENT_TYPES.values()
    }
    found = {"description": "The picture, or its base64 text.", "content": contents}
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "As in the link.",
        "schema": {"type": "string"},
    }
    return {
        "parameters": [name],
        "get": {
            "operationId": "output",
            "summary": "A picture that was made; no key is asked, since names cannot be guessed",
            "responses": {"200": found, **_errors("404", "500", "503")},
        },
        "head": {
            "operationId": "outputHead",
            "summary": "Whether a picture is there yet",
            "responses": {"200": {"description": "It is."}, **_heads("404", "500", "503")},
        },
    }


def _get(name: str, summary: str, found: Schema, *errors: str) -> Schema:
    """A path that is only read, and takes nothing."""
    responses = {"200": found, **_errors(*errors)}
    return {"get": {"operationId": name, "summary": summary, "responses": responses}}


def _body(name: str) -> Schema:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _any_of_three(description: str) -> Schema:
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in (SUCCESS, PROCESSING, ERROR)]
    return _json(description, {"oneOf": schemas})


def _errors(*statuses: str) -> dict[str, Schema]:
    return {status: {"$ref": f"#/components/responses/{_ERRORS[status]}"} for status in statuses}


def _heads(*statuses: str) -> dict[str, Schema]:
    """Errors without a body."""
    described = _responses()
    return {
        status: {"description": described[_ERRORS[status]]["description"]} for status in statuses
    }
