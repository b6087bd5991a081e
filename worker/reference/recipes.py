"""The page of recipes: the catalog, and every key of the document."""

from collections.abc import Iterator
from typing import Any

import yaml

from spq_core.recipe.catalog import catalog
from spq_core.recipe.document import Recipe
from worker.reference.schema import cell, table


def page() -> Iterator[str]:
    """Its lines."""
    yield "# Recipes"
    yield ""
    yield (
        'A recipe is a JSON or YAML document. A request names one of the catalog, extends one (`{"extends": "small", …}`), or brings '
        "its own. Unknown keys are refused. The JSON Schema is at `/schemas/recipe-v1.json`."
    )
    yield ""
    yield "## The catalog"
    for name, recipe in sorted(catalog().items()):
        yield ""
        yield f"### `{name}`"
        yield ""
        yield cell(recipe.metadata.description)
        yield ""
        yield "```yaml"
        yield _document(recipe)
        yield "```"
    yield ""
    yield "## Keys"
    yield from sections("Recipe", Recipe.model_json_schema(by_alias=True))


def sections(name: str, schema: dict[str, Any]) -> Iterator[str]:
    """One for each kind of object that a document is made of."""
    for part, one in ({name: schema} | schema["$defs"]).items():
        yield from described(part, one, schema["$defs"])


def described(name: str, schema: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    """A section for one kind of object; `parts`: those that it refers to, by name."""
    rows = list(table(schema, parts))
    if rows:
        yield ""
        yield f"### {name}"
        yield ""
        if schema.get("description"):
            yield cell(schema["description"].split("\n\n")[0])
            yield ""
        yield from rows


def _document(recipe: Recipe) -> str:
    """What sets it apart from the defaults, as its author wrote it."""
    shown = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    shown.pop("metadata")
    return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=110).strip()
