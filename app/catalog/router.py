"""Routes that tell what this service can do."""

from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from app.db.workers import present_workers
from app.http.auth import Reader, database_of
from app.http.problems import documented
from app.settings import ApiSettings
from spq_core.data.texts import BUILT_IN, HUB_DATASETS
from spq_core.errors import RecipeError
from spq_core.models.architectures import ALL_MODEL_TYPES
from spq_core.recipe.catalog import catalog, resolve
from spq_core.recipe.document import Recipe

router = APIRouter(tags=["catalog"])


@router.get("/recipes")
def list_recipes() -> dict[str, Any]:
    """The recipes that ship with the service."""
    data = [_described(recipe) for recipe in catalog().values()]
    return {"object": "list", "data": data, "has_more": False}


@router.get("/recipes/{name}", responses=documented(RecipeError))
def get_recipe(
    name: Annotated[str, Path(description="A recipe of the catalog.")],
) -> dict[str, Any]:
    """One recipe of the catalog."""
    return _described(resolve(name))


@router.get("/schemas/recipe-v1.json")
def recipe_schema() -> dict[str, Any]:
    """JSON Schema of the recipe document."""
    return Recipe.model_json_schema(by_alias=True)


@router.get("/capabilities")
def capabilities(request: Request, _caller: Reader) -> dict[str, Any]:
    """What this installation takes, and the workers that are there.

    A worker's `isolation` lists what its runs are kept from: `calls` of the system, other `files`, `network` (or `tcp` alone), `processes`.
    """
    settings: ApiSettings = request.app.state.settings
    folders = settings.model_folders()
    models = sorted(
        entry.name for folder in folders if folder.is_dir()
        for entry in folder.iterdir() if (entry / "config.json").is_file()
    )  # fmt: skip
    with database_of(request).read() as session:
        workers = [
            {"id": row.id, "seen_at": row.seen_at.isoformat(), **row.facts}
            for row in present_workers(session)
        ]
    return {
        "version": version("spq"),
        "model_types": list(ALL_MODEL_TYPES),
        "recipes": list(catalog()),
        "datasets": [*HUB_DATASETS, *BUILT_IN],
        "local_models": models,
        "max_attempts": settings.max_attempts,
        "workers": workers,
    }


def _described(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.metadata.name,
        "description": recipe.metadata.description,
        "recipe": recipe.document(),
        "recipe_sha256": recipe.sha256(),
    }
