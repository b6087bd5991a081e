"""What the matrices of experts receive: of the tokens that are routed to them, and of more where those are few.

A second moment over fewer tokens than there are inputs has directions in which nothing was seen. So an expert that sees
T tokens, fewer than its n inputs, is shown all tokens of the layer as well, and those count for the n − T that are
missing:

    E[x xᵀ] = (T · E_routed[x xᵀ] + (n − T) · E_all[x xᵀ]) / n

The rule is ours. An expert that no token chose is measured on all alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from spq_core.errors import DatasetError, NumericalError
from spq_core.formats.slicing import linear_at
from spq_core.models.experts import modules_of_experts
from spq_core.models.family import Group, Step
from spq_core.models.finite import all_finite
from spq_core.streaming.moments import InputMoments, RunningMoments

MOST_UNSEEN = 0.5
"""Share of a layer's experts that no calibration token may choose: above it, calibration says nothing of the layer."""


def moments_of_experts(
    block: nn.Module, groups: Step, run: Callable[[], None]
) -> dict[Group, InputMoments]:
    """Moments of several groups at once.

    Args:
        run: sends all samples through the block.

    Raises:
        NumericalError: an input is not finite.
    """
    with _adding_up(block, groups) as sums:
        run()
    return _filled_up(block, groups, sums, run)


def weighed_experts(
    block: nn.Module,
    groups: Step,
    sums: Mapping[Group, RunningMoments],
    squares: Mapping[str, Tensor],
    tokens: int,
    run: Callable[[], None],
) -> dict[str, tuple[InputMoments, Tensor]]:
    """Moments and E[g²] of every matrix of a step.

    An output counts as often as there is one: its mean is over all tokens of the layer, those included that do not ask
    for the expert. One that no token chose counts as if one had, and had found the mean of the others.

    Args:
        sums: of routed tokens; none where an expert saw none.
        squares: Σ g² of every output, likewise.
        tokens: how many went through the layer.
        run: sends them through it again.

    Raises:
        DatasetError: no token chose most of the experts.
    """
    require_seen(groups[0][0], [sums[one].tokens if one in sums else 0 for one in groups])
    moments = _filled_up(block, groups, sums, run)
    seen = sum(sums[group].tokens for group in groups if group in sums)
    found = [squares[group[0]] for group in groups if group in sums]
    once = torch.stack(found).sum(dim=0) / max(1, seen)
    return {group[0]: (moments[group], squares.get(group[0], once) / tokens) for group in groups}


def _filled_up(
    block: nn.Module,
    groups: Step,
    sums: Mapping[Group, RunningMoments],
    run: Callable[[], None],
) -> dict[Group, InputMoments]:
    """With all tokens where too few were routed."""
    few = [
        group
        for group in groups
        if group not in sums or sums[group].tokens < linear_at(block, group[0]).in_features
    ]
    filled: dict[Group, RunningMoments] = {}
    if few:
        with _adding_up(block, few) as filled, _pooled(block, few):
            run()
    routed = {group: sums[group].tokens if group in sums else 0 for group in groups}
    found = {group: blended(sums.get(group), filled.get(group)) for group in groups}
    return {
        group: replace(finite(one, group[0]), routed=routed[group]) for group, one in found.items()
    }


def require_seen(name: str, tokens: Sequence[int]) -> None:
    """Refuse a calibration that says nothing of most experts.

    Args:
        name: of one of their matrices.
        tokens: how many each expert was sent.

    Raises:
        DatasetError: too many saw none.
    """
    unseen = sum(count == 0 for count in tokens)
    if unseen > MOST_UNSEEN * len(tokens):
        raise DatasetError(
            f"{name} and its like: no calibration token is routed to {unseen} of {len(tokens)} experts, so nothing is "
            "known of them; calibrate on more or other text (calibration.samples, calibration.dataset)"
        )


def blended(routed: RunningMoments | None, everything: RunningMoments | None) -> InputMoments:
    """Moments over routed tokens, filled up with others where those are given; ends the sums.

    Raises:
        ValueError: there are neither.
    """
    if routed is None or routed.tokens == 0:
        if everything is None:
            raise ValueError("no token at all")
        return everything.moments()
    if everything is None:
        return routed.moments()
    pooled = everything.moments()
    seen, wanted = routed.tokens, pooled.second_moment.shape[0]
    own, share = routed.moments(), seen / wanted
    assert own.peak is not None  # noqa: S101 - running moments have one
    assert pooled.peak is not None  # noqa: S101
    return InputMoments(
        mean=share * own.mean + (1 - share) * pooled.mean,
        second_moment=own.second_moment.mul_(share).add_(pooled.second_moment, alpha=1 - share),
        tokens=wanted,
        peak=torch.maximum(own.peak, pooled.peak),
    )


def finite(moments: InputMoments, name: str) -> InputMoments:
    """The same.

    Raises:
        NumericalError: something is not finite.
    """
    if not all_finite(moments.second_moment):
        raise NumericalError("calibration", f"the input of {name}")
    return moments


@contextmanager
def _adding_up(block: nn.Module, groups: Sequence[Group]) -> Iterator[dict[Group, RunningMoments]]:
    sums: dict[Group, RunningMoments] = {}
    handles = []
    for group in groups:
        linear = linear_at(block, group[0])
        device = next(iter(block.parameters())).device
        sums[group] = RunningMoments(linear.in_features, device)

        def add(
            _module: nn.Module, arguments: tuple[Tensor, ...], of: RunningMoments = sums[group]
        ) -> None:
            of.add(arguments[0].detach())

        handles.append(linear.register_forward_pre_hook(add))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _pooled(block: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Within the block, experts send all tokens to those of these groups, and nothing else."""
    modules = dict(modules_of_experts(block))
    for path, experts in modules.items():
        names = [group[0].removeprefix(f"{path}.") for group in groups if group[0].startswith(path)]
        experts.pooled = tuple(sorted({int(name.partition(".")[0]) for name in names}))
    try:
        yield
    finally:
        for experts in modules.values():
            experts.pooled = None
