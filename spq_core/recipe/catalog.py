"""The recipes that ship with the package, and how a request names one."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from spq_core.errors import RecipeError
from spq_core.recipe.document import Recipe, parse_recipe

DEFAULT = "balanced"
"""What a request without a recipe asks for."""


@cache
def catalog() -> Mapping[str, Recipe]:
    """All shipped recipes by name, in alphabetical order."""
    folder = files("spq_core.recipe") / "catalog"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    recipes = [
        parse_recipe(yaml.safe_load(entry.read_text(encoding="utf-8")))
        for entry in entries
        if entry.name.endswith(".yaml")
    ]
    return {recipe.metadata.name: recipe for recipe in recipes}


def resolve(request: str | Mapping[str, Any]) -> Recipe:
    """Return the recipe that a request asks for.

    A request is a catalog name, a whole document, or a document with `extends: <name>` whose keys
    replace those of the named recipe (one level; `calibration` and `gates` are merged by key).

    Raises:
        RecipeError: the name is unknown or the document is malformed.
    """
    if isinstance(request, str):
        return _named(request)
    if "extends" not in request:
        return parse_recipe(dict(request))
    changes = {key: value for key, value in request.items() if key != "extends"}
    base = _named(str(request["extends"])).document()
    for key in ("calibration", "gates", "metadata"):
        if isinstance(changes.get(key), Mapping):
            changes[key] = base[key] | dict(changes[key])
    if "metadata" not in changes:
        name = base["metadata"]["name"]
        told = (
            f"As `{name}`, with other {', '.join(sorted(changes))}."
            if changes
            else base["metadata"]["description"]
        )
        changes["metadata"] = {"name": f"{name}-custom", "description": told}
    return parse_recipe(base | changes)


def read_request(name: str) -> str | dict[str, Any]:
    """What a command line names: a YAML or JSON file's document, else a catalog name.

    Raises:
        RecipeError: the file does not exist, or is not a document.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml", ".json"} and not path.is_file():
        return name
    if not path.is_file():
        raise RecipeError(f"recipe file {name} does not exist")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError) as error:
        raise RecipeError(f"{name} is not YAML or JSON{_place(error)}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{name} does not hold a recipe document")
    return document


def _place(error: Exception) -> str:
    """What is wrong with a document, and where."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f": {str(error).splitlines()[0]}"
    return f", line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _named(name: str) -> Recipe:
    recipes = catalog()
    if name not in recipes:
        raise RecipeError(f"unknown recipe {name!r}; the catalog has {', '.join(recipes)}")
    return recipes[name]
