"""From settings to the stage that does what they say."""

from importlib import import_module

from spq_core.methods.registry import METHODS
from spq_core.methods.settings import StageSettings
from spq_core.methods.stage import Stage, StageContext


def make_stage(settings: StageSettings, context: StageContext) -> Stage:
    """Make the stage, with what was planned for it.

    Raises:
        RecipeError: it needs what the context lacks.
    """
    module = next(method.module for method in METHODS if method.settings is type(settings))
    stage: Stage = import_module(module).make_stage(settings, context)
    return stage
