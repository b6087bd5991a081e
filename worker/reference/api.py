"""The page of the HTTP API: every address, and the bodies that requests have."""

from collections.abc import Iterator
from typing import Any

from worker.reference.recipes import described
from worker.reference.schema import anchor, cell, kind, named

INTRODUCTION = """\
Every request needs `Authorization: Bearer KEY`, unless it is said to need none. Answers, with their schemas, are in
[openapi.json](../openapi.json), which the service has at `/openapi.json`. Errors are `application/problem+json` with a `code`, a
`detail` that names what is wrong and what would do, and the `request_id` that logs have, too."""
METHODS = ("get", "post", "patch", "put", "delete")


def page(document: dict[str, Any]) -> Iterator[str]:
    """Its lines."""
    yield "# HTTP API"
    yield ""
    yield INTRODUCTION
    bodies: dict[str, None] = {}
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield from _operation(f"{method.upper()} {path}", methods[method], bodies, schemas)
    yield ""
    yield "## Bodies"
    for name in _reached(bodies, schemas):
        yield from described(name, schemas[name], schemas)


def _operation(
    title: str, operation: dict[str, Any], bodies: dict[str, None], schemas: dict[str, Any]
) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    yield operation.get("description", operation["summary"]).strip()
    if not operation.get("security"):
        yield ""
        yield "Needs no key."
    parameters = [one for one in operation.get("parameters", ()) if one["in"] != "path"]
    if parameters:
        yield ""
        yield "| parameter | in | value | |"
        yield "|---|---|---|---|"
    for one in parameters:
        yield f"| `{one['name']}` | {one['in']} | {kind(one['schema'], schemas)} | {cell(one.get('description', ''))} |"
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name in _names(content["schema"]):
            bodies[name] = None
            yield ""
            yield f"Body: [{name}](#{anchor(name)})."


def _reached(names: dict[str, None], schemas: dict[str, Any]) -> Iterator[str]:
    """These, and those that they are made of, each once."""
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen.add(name)
            yield name
            waiting.extend(_names(schemas[name]))


def _names(schema: Any) -> Iterator[str]:
    """What a schema refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield named(schema["$ref"])
        for value in schema.values():
            yield from _names(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _names(value)
