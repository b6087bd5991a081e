"""The recipe document: what to do to a model, validated where it enters.

A recipe is JSON or YAML. Unknown keys are refused, because a mistyped key costs hours of compute.
The JSON Schema is `Recipe.model_json_schema()`; the service publishes it. Free of torch.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import ConfigDict, Field, ValidationError, model_validator

from spq_core.data.calibration import Calibration
from spq_core.documents import Document
from spq_core.errors import RecipeError
from spq_core.evaluation.settings import Gates
from spq_core.formats.profiles.registry import ProfileName, profile_named
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.methods.recovery.settings import RecoverSettings
from spq_core.methods.registry import METHODS
from spq_core.methods.settings import StageSettings
from spq_core.methods.training.settings import TrainedSettings
from spq_core.planning.target import OF_LEVELS, Target

if TYPE_CHECKING:
    AnyStage = StageSettings
else:
    AnyStage = Annotated[
        Union[*(method.settings for method in METHODS)], Field(discriminator="type")
    ]


class Metadata(Document):
    """Name and purpose of a recipe."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "custom"
    """Lower-case letters, digits and dashes."""
    description: Annotated[str, Field(max_length=1000)] = ""
    """For people."""


class Recipe(Document):
    """An ordered list of stages and the settings around them."""

    api_version: Annotated[Literal["recipe/v1"], Field(alias="apiVersion")] = "recipe/v1"
    """Version of this form of document."""
    metadata: Metadata = Metadata()
    """What it is called, and what it is for."""
    stages: Annotated[tuple[AnyStage, ...], Field(min_length=1, max_length=8)]
    """What is done to the model, in this order."""
    calibration: Calibration = Calibration()
    """The text that stages look at."""
    target: Target | None = None
    """What the result must come to; needed where a stage leaves amounts open."""
    profile: ProfileName = "compact"
    """Who is to read the artifact: our package (`compact`), stock runtimes by compressed-tensors (`portable`: 8 or
    4 bits, equal widths, embedding and head as they were), or llama.cpp (`gguf`: one file, in `types` of ggml's)."""
    floats: Literal["16-bit", "source"] = "16-bit"
    """What stays in floating point: in 16 bits (bfloat16, where the source has float32), or as wide as the
    source stores it."""
    gates: Gates = Gates()
    """What the result must keep to be published."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _each_stage_once(self) -> Self:
        kinds = [stage.type for stage in self.stages]
        repeated = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if repeated:
            raise ValueError(f"each stage type may appear once, repeated: {', '.join(repeated)}")
        return self

    @model_validator(mode="after")
    def _target_where_needed(self) -> Self:
        if self.by_entropy and self.target is None:
            raise ValueError("quantize with method entropy needs a target: bytes_ratio or max_kl")
        auto = [stage.type for stage in self.stages if stage.is_auto]
        if auto and self.target is None:
            raise ValueError(
                f"{auto[0]} is set to auto, which needs target.bytes_ratio or target.max_kl"
            )
        fixed = self.quantize is not None and not (self.by_entropy or self.quantize.is_auto)
        if auto and fixed:
            raise ValueError(
                "auto together with quantization needs method entropy, which shares its target"
            )
        if self.target is not None and not self.by_entropy:
            self._check_structural_target(self.target)
        elif self.target is not None and self.target.allocation in {"theoretical", *OF_LEVELS}:
            raise ValueError(
                f"allocation {self.target.allocation} does not share out bits by entropy; use loss"
            )
        return self

    @model_validator(mode="after")
    def _check_what_a_target_counts_on(self) -> Self:
        """No stage may take away what has been planned for."""
        errors = [stage.target_error for stage in self.stages if stage.target_error]
        if self.target is not None and errors:
            raise ValueError(errors[0])
        return self

    def _check_structural_target(self, target: Target) -> None:
        """Without quantization by entropy a target decides what stages remove, and nothing else may."""
        if not any(stage.is_auto for stage in self.stages):
            raise ValueError(
                "a target needs a quantize stage with method entropy or with levels, or a stage whose amount is auto "
                "(svd.variance, prune.max_ratio, prune-heads.ratio)"
            )
        if self.quantize is not None:
            self._check_levels(target)
        else:
            self._check_rank_rule(target)
        if target.max_kl is not None:
            raise ValueError("max_kl needs a quantize stage with method entropy")
        for stage in self.stages:
            if stage.removes_weights and not stage.is_auto:
                raise ValueError(
                    f"without quantization the target decides all that is removed; set {stage.type} to auto"
                )
            if stage.added_bytes_error:
                raise ValueError(stage.added_bytes_error)

    def _check_rank_rule(self, target: Target) -> None:
        """Rules but our own are of ranks, where nothing has widths; two are of neurons, too."""
        if target.is_of_levels:
            self._check_parts(target)
            return
        others = [stage.type for stage in self.stages if stage.is_auto and stage.planned != "ranks"]
        if target.allocation != "loss" and others:
            raise ValueError(
                f"allocation {target.allocation} shares out ranks alone; {others[0]} set to auto needs allocation loss"
            )

    def _check_parts(self, target: Target) -> None:
        """Each part has a level of one kind."""
        planned = {stage.planned: stage for stage in self.stages if stage.is_auto}
        if "heads" in planned:
            raise ValueError(
                f"allocation {target.allocation} shares out widths, ranks and neurons; leave out {planned['heads'].type} set to auto"
            )
        ranks = planned.get("ranks")
        if (
            "neurons" in planned
            and ranks is not None
            and getattr(ranks, "modules", "") != "attention"
        ):
            raise ValueError(
                f"allocation {target.allocation} gives an MLP ranks or a number of neurons, not both; set svd.modules to attention"
            )

    def _check_levels(self, target: Target) -> None:
        """A width for each matrix of the source, and nothing else."""
        if target.allocation not in {"loss", *OF_LEVELS}:
            raise ValueError(
                f"allocation {target.allocation} does not share out levels; leave it out"
            )
        others = [stage.type for stage in self.stages if stage.removes_weights]
        if others:
            raise ValueError(
                f"levels are chosen for the matrices of the source; leave out {others[0]}"
            )

    @model_validator(mode="after")
    def _in_a_possible_order(self) -> Self:
        for index, stage in enumerate(self.stages):
            error = stage.order_error(self.stages[:index], self.stages[index + 1 :])
            if error:
                raise ValueError(error)
        return self

    @model_validator(mode="after")
    def _in_a_form_of_the_profile(self) -> Self:
        profile = profile_named(self.profile)
        for stage in self.stages:
            if reason := stage.profile_error(profile):
                raise ValueError(profile.error(reason))
        return self

    @property
    def quantize(self) -> QuantizeSettings | None:
        """The stage that quantizes, if there is one."""
        return next((one for one in self.stages if isinstance(one, QuantizeSettings)), None)

    @property
    def recover(self) -> RecoverSettings | None:
        """The stage that trains, if there is one."""
        return next((one for one in self.stages if isinstance(one, RecoverSettings)), None)

    @property
    def trained(self) -> tuple[TrainedSettings, ...]:
        """The stages that train, in their order."""
        return tuple(one for one in self.stages if isinstance(one, TrainedSettings))

    @property
    def by_entropy(self) -> bool:
        """Whether codes are stored by entropy, as fine as the target allows."""
        return self.quantize is not None and self.quantize.by_entropy

    @property
    def needs_calibration(self) -> bool:
        """Whether anything in the recipe looks at text."""
        return self.target is not None or any(stage.needs_calibration for stage in self.stages)

    @property
    def looks_at(self) -> Calibration | None:
        """The text that it needs, if it needs any."""
        return self.calibration if self.needs_calibration else None

    @property
    def tries_models(self) -> bool:
        """Whether whole models are compared with the source before it is decided."""
        return self.target is not None and self.target.allocation == "evolution"

    @property
    def fits_to_inputs(self) -> bool:
        """Whether anything is fitted to what matrices receive."""
        return self.target is not None or any(stage.fits_to_inputs for stage in self.stages)

    def changed_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Entries of the text part's configuration that are others after all stages."""
        changes: dict[str, Any] = {}
        for stage in self.stages:
            changes |= stage.changed_config({**config, **changes})
        return changes

    @property
    def needs_sensitivity(self) -> bool:
        """Whether anything is decided by what it costs in expected loss."""
        return self.target is not None or any(stage.needs_sensitivity for stage in self.stages)

    def document(self) -> dict[str, Any]:
        """The recipe with every default written out, as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    def sha256(self) -> str:
        """Digest of the resolved document, independent of key order and spelling of defaults."""
        text = json.dumps(self.document(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_recipe(document: object) -> Recipe:
    """Validate a recipe document.

    Raises:
        RecipeError: with one line per problem, each naming the key and the value.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        problems = error.errors()
        # A malformed stage also leaves a list too short; that says nothing new.
        own = [one for one in problems if one["type"] != "too_short" or len(problems) == 1]
        raise RecipeError("; ".join(_describe(problem) for problem in own)) from None


def _describe(problem: Any) -> str:
    """One pydantic problem as `where: what, got value`."""
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key{_meant(str(problem['loc'][-1]), _all_keys())}"
    if problem["type"] == "union_tag_invalid":
        names = [method.name for method in METHODS]
        tag = str(problem["ctx"]["tag"])
        return (
            f"{where}: unknown stage {tag[:80]!r}{_meant(tag, names)}; there are {', '.join(names)}"
        )
    if problem["type"] == "too_short":
        return f"{where}: give at least one stage"
    said = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    whole = isinstance(given, dict | list | tuple) and problem["type"] == "value_error"
    return f"{where}: {said}" if whole else f"{where}: {said}, got {str(given)[:80]}"


def _meant(given: str, known: Iterable[str]) -> str:
    near = get_close_matches(given, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _all_keys() -> set[str]:
    """Every key that some part of a recipe has."""
    parts: list[type[Document]] = [Recipe, Calibration, Target, Gates, Metadata]
    parts += [method.settings for method in METHODS]
    return {field.alias or name for part in parts for name, field in part.model_fields.items()}
