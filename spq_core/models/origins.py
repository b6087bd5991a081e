"""Where a model's tensors come from in its files: under which names, and through which conversion.

transformers 5 builds some models otherwise than they are stored (experts one by one in files, fused in memory; parts
renamed since), and converts while it loads. The same rules are applied here, to a few tensors at a time.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from spq_core.models.experts import fused_parts, modules_of_experts


@dataclass(frozen=True, slots=True)
class Conversion:
    """Stored tensors that become one tensor of transformers' model, or several, together."""

    first: str
    """The name of the first of them, by which transformers expands the others'."""
    sources: list[tuple[str, str]] = field(default_factory=list)
    """(the rule's pattern, the name in the files), in the rule's order."""
    rule: WeightConverter | None = None
    """None where the tensor is only renamed."""
    model: "_Fused | None" = None

    @property
    def stored(self) -> tuple[str, ...]:
        """Names in the files."""
        return tuple(name for _, name in self.sources)

    def holds_all(self, experts: int) -> bool:
        """Whether each pattern has one tensor for all experts or one for each: without one, others would take its place."""
        counts = Counter(pattern for pattern, _ in self.sources)
        return set(counts.values()) <= {1, experts}

    def made_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors by name.

        Args:
            tensors: those of `stored`; on the meta device, shapes come of it.
        """
        if self.rule is None:
            return {self.first: tensors[self.stored[0]]}
        rule = deepcopy(self.rule)
        for pattern, name in self.sources:
            ready: Future[Tensor] = Future()
            ready.set_result(tensors[name])
            rule.add_tensor(self.first, name, pattern, ready)
        config = None if self.model is None else self.model.config
        made: dict[str, Any] = rule.convert(self.first, model=self.model, config=config)
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


@dataclass(frozen=True, slots=True)
class Origin:
    """How one tensor of our model is made."""

    conversion: Conversion
    name: str
    """In transformers' model."""
    expert: int | None = None
    """Which part of the first axis it is, where it is one."""
    is_transposed: bool = False

    def of(self, made: Mapping[str, Tensor]) -> Tensor:
        """The tensor, of what the conversion made."""
        tensor = made[self.name]
        if self.expert is not None:
            tensor = tensor[self.expert]
        return tensor.mT.contiguous() if self.is_transposed else tensor


def origins_of(model: PreTrainedModel, stored: Collection[str]) -> dict[str, Origin]:
    """The origin of each of the model's tensors that its files have something for.

    Args:
        model: without weights, its experts separate.
        stored: names in the files.
    """
    parts = fused_parts(model)
    counts = {path: experts.num_experts for path, experts in modules_of_experts(model)}
    wanted: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in parts:
            fused, _, is_transposed = parts[name]
            one = tensor.mT if is_transposed else tensor
            wanted[fused] = one.expand(counts[fused.rpartition(".")[0]], *one.shape)
        else:
            wanted[name] = tensor
    made = _conversions(model, _Fused(model.config, wanted), stored)
    found: dict[str, Origin] = {}
    for name in model.state_dict():
        fused, expert, is_transposed = parts.get(name, (name, None, False))
        if fused in made and (expert is None or made[fused].holds_all(len(wanted[fused]))):
            found[name] = Origin(made[fused], fused, expert, is_transposed)
    return found


@dataclass(frozen=True, slots=True)
class _Fused:
    """What rules ask a model: its configuration, and the shapes of its tensors as transformers holds them."""

    config: PretrainedConfig
    tensors: Mapping[str, Tensor]

    def get_parameter(self, name: str) -> Tensor:
        """One of them."""
        return self.tensors[name]


def _conversions(
    model: PreTrainedModel, fused: _Fused, stored: Collection[str]
) -> dict[str, Conversion]:
    """By the name of a tensor in transformers' model."""
    rules = get_model_conversion_mapping(model)
    renamings = [one for one in rules if isinstance(one, WeightRenaming)]
    converters = [one for one in rules if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    prefix, wanted = model.base_model_prefix, dict(fused.tensors)
    found: dict[str, Conversion] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = name, None
        if target not in wanted:
            continue
        rule = None if pattern is None else by_pattern[pattern]
        if (
            rule is None and target in found
        ):  # two names of one tensor: its own counts, the other is read by nobody
            if name != target:
                continue
            del found[target]
        conversion = found.setdefault(target, Conversion(target, [], rule, fused))
        conversion.sources.append((pattern or name, name))
    for conversion in list(found.values()):
        if conversion.rule is not None and len(conversion.rule.target_patterns) > 1:
            first, *others = conversion.rule.target_patterns
            found |= {conversion.first.replace(first, other): conversion for other in others}
    return found


def shapes_of(conversion: Conversion, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What a conversion makes, on the meta device.

    Args:
        shapes: of the stored tensors.
    """
    empty = {name: torch.empty(shapes[name], device="meta") for name in conversion.stored}
    return conversion.made_of(empty)
