"""Tables of JSON Schema objects."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
REF = "#/$defs/"
COMPONENT = "#/components/schemas/"
LIMITS = {"minimum": "≥ ", "exclusiveMinimum": "> ", "maximum": "≤ ", "exclusiveMaximum": "< "}


def named(reference: str) -> str:
    """The name in a `$ref`."""
    return reference.removeprefix(REF).removeprefix(COMPONENT)


def table(schema: Schema, parts: Mapping[str, Schema]) -> Iterator[str]:
    """A line a key: what it may be (`parts`: the objects that `$ref` names), its default, what it means."""
    properties = schema.get("properties", {})
    if not properties:
        return
    required = set(schema.get("required", ()))
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    for name, value in properties.items():
        default = "required" if name in required else _default(value)
        yield f"| `{name}` | {kind(value, parts)} | {default} | {cell(value.get('description', ''))} |"


def cell(text: str) -> str:
    """A text within a table."""
    return " ".join(text.split()).replace("|", "\\|")


def kind(schema: Schema, parts: Mapping[str, Schema]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in schema:
        name = named(schema["$ref"])
        if "enum" in parts[name]:
            return kind(parts[name], parts)
        return f"[{name}](#{anchor(name)})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            found = (kind(one, parts) for one in schema[several] if one.get("type") != "null")
            return " or ".join(dict.fromkeys(found))
    return _plain(schema, parts)


def _plain(schema: Schema, parts: Mapping[str, Schema]) -> str:
    found = str(schema.get("type", "any"))
    if found == "array":
        return f"list of {kind(schema.get('items', {}), parts)}"
    limits = " ".join(f"{sign}{schema[name]:g}" for name, sign in LIMITS.items() if name in schema)
    return f"{found} {limits}".strip()


def _default(schema: Schema) -> str:
    if "default" not in schema or schema["default"] is None:
        return ""
    return f"`{cell(json.dumps(schema['default'], ensure_ascii=False))}`"


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    kept = (one for one in heading.lower() if one.isalnum() or one in " -_")
    return "".join(kept).replace(" ", "-")
