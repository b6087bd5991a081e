"""Share out bytes: one number, searched for, that sets the distortion of every matrix.

`loss` gives all matrices one distortion (the level of reverse water-filling). At that point no byte would save more loss elsewhere: the loss
a matrix gains per bit it gives up is 2 ln 2 · distortion / 24 per weight, whatever the matrix, so equal
distortions are the optimum of the Lagrangian. The other rules are those of published methods, read for
lattices instead of ranks, and stand here for comparison.
"""

from collections.abc import Callable, Mapping

from spq_core.errors import RecipeError
from spq_core.planning.bisection import largest
from spq_core.planning.curve import DISTORTIONS, Curve

Distortions = dict[str, float]
Rule = Callable[[float, Mapping[str, Curve]], Distortions]
RANGE = (-42.0, 62.0)
"""Of the number searched for: octaves of a distortion, bits, or octaves of an error."""


def one_distortion(number: float, curves: Mapping[str, Curve]) -> Distortions:
    """The same distortion for all: least expected loss for the bytes."""
    return dict.fromkeys(curves, 2.0**-number)


def equal_bits(number: float, curves: Mapping[str, Curve]) -> Distortions:
    """The same bits per weight for all."""
    return {name: curve.distortion_with_bits(number) for name, curve in curves.items()}


def equal_error(number: float, curves: Mapping[str, Curve]) -> Distortions:
    """One relative tolerance for all (PGSVD, arXiv:2510.05544, algorithm 1)."""
    return {name: curve.distortion_with_error(2.0**-number) for name, curve in curves.items()}


def by_importance(blocks: Mapping[str, float]) -> Rule:
    """More bits where a block turns its input more (MGAA, arXiv:2507.03294).

    Bits per weight are affine in the block's importance, one bit apart between the least and the
    most important; inside a block all matrices have one relative error.

    Args:
        blocks: matrix name → importance of its block, 1 − mean cosine of input and output.
    """
    low, high = min(blocks.values()), max(blocks.values())
    spread = (high - low) or 1.0

    def rule(number: float, curves: Mapping[str, Curve]) -> Distortions:
        distortions: Distortions = {}
        by_value: dict[float, dict[str, Curve]] = {}
        for name, curve in curves.items():
            importance = blocks.get(name, (low + high) / 2)
            by_value.setdefault(importance, {})[name] = curve
        for importance, members in by_value.items():
            bits = number + (importance - low) / spread - 0.5
            wanted = sum(
                curve.elements * bits / 8 + curve.overhead_bytes for curve in members.values()
            )
            distortions |= search(equal_error, members, wanted)
        return distortions

    return rule


def rule_named(allocation: str, blocks: Mapping[str, float]) -> Rule:
    """The rule that a recipe's `target.allocation` names; `blocks` as for `by_importance`."""
    simple: dict[str, Rule] = {"loss": one_distortion, "uniform": equal_bits, "pgsvd": equal_error}
    return simple[allocation] if allocation in simple else by_importance(blocks)


def search(rule: Rule, curves: Mapping[str, Curve], wanted_bytes: float) -> Distortions:
    """The distortions of a rule whose bytes come closest to `wanted_bytes`."""
    found = largest(
        lambda number: total_bytes(curves, rule(number, curves)) <= wanted_bytes, *RANGE
    )
    return rule(found, curves)


def choose_dense(
    curves: Mapping[str, Curve], wanted_bytes: float, stored_bytes: int
) -> frozenset[str]:
    """Matrices to leave as they are, when even the finest lattices leave bytes over.

    Those that lose most per byte it takes to store them whole, as long as they fit.
    """
    finest = DISTORTIONS[0]
    left = wanted_bytes - total_bytes(curves, dict.fromkeys(curves, finest))
    extra = {
        name: stored_bytes * curve.elements - curve.bytes_at(finest)
        for name, curve in curves.items()
    }
    chosen: set[str] = set()
    for name in sorted(curves, key=lambda name: -curves[name].loss_at(finest) / extra[name]):
        if extra[name] <= left:
            chosen.add(name)
            left -= extra[name]
    return frozenset(chosen)


def bytes_for_loss(rule: Rule, curves: Mapping[str, Curve], loss: float) -> float:
    """The fewest bytes at which a rule expects at most `loss`."""
    low, high = RANGE
    least = -largest(
        lambda negative: expected_loss(curves, rule(-negative, curves)) <= loss, -high, -low
    )
    return total_bytes(curves, rule(least, curves))


def total_bytes(curves: Mapping[str, Curve], distortions: Mapping[str, float]) -> float:
    """Predicted bytes of all matrices."""
    return sum(curve.bytes_at(distortions[name]) for name, curve in curves.items())


def expected_loss(curves: Mapping[str, Curve], distortions: Mapping[str, float]) -> float:
    """Predicted KL of all matrices together, in nats per token."""
    return sum(curve.loss_at(distortions[name]) for name, curve in curves.items())


def check_reachable(curves: Mapping[str, Curve], wanted_bytes: float, fixed_bytes: float) -> None:
    """Refuse a size below the coarsest lattice's. A size above the finest one's is a budget not used up.

    Raises:
        RecipeError: with the least size that can be reached.
    """
    least = total_bytes(curves, dict.fromkeys(curves, DISTORTIONS[-1]))
    if wanted_bytes < least:
        raise RecipeError(
            f"target asks for {round(wanted_bytes + fixed_bytes):,} bytes; with these stages "
            f"this model takes at least {round(least + fixed_bytes):,}"
        )
