"""What learning a spectrum trains: a mask over each matrix's directions, and adapters beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spq_core.formats.slicing import bias_of, float_weight, linear_at
from spq_core.methods.spectra.directions import Directions, directions_of
from spq_core.methods.spectra.masks import relative_energy, straight_through, without_ties
from spq_core.methods.spectra.settings import SpectrumSettings
from spq_core.methods.spectra.sizes import Factored, ranks_within
from spq_core.methods.training.adapters import DOWN, UP, adapter_of
from spq_core.models.family import Family
from spq_core.streaming.run_state import StateFolder

MASK = "mask"
Gate = Callable[[Tensor], Tensor]
Adapter = tuple[Tensor, Tensor]


class MaskedLinear(nn.Module):
    """y = up (gate(mask) · (down x)) + bias, and an adapter's product where there is one."""

    def __init__(
        self, directions: Directions, bias: Tensor | None, mask: Tensor, gate: Gate,
        adapter: Adapter | None, scale: float,
    ) -> None:  # fmt: skip
        """Keep tensors as they are given, so that one being trained stays the one that is used."""
        super().__init__()
        self.directions = directions
        self.bias = bias
        self.mask = mask
        self.gate = gate
        self.adapter = adapter
        self.scale = scale

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """The directions that are open."""
        inner = functional.linear(x, self.directions.down) * self.gate(self.mask)
        y = functional.linear(inner, self.directions.up, self.bias)
        if self.adapter is None:
            return y
        down, up = self.adapter
        return y + self.scale * functional.linear(functional.linear(x, down), up)


@dataclass(slots=True)
class DirectionParameters:
    """All trained tensors by full name, and each matrix's directions on disk."""

    settings: SpectrumSettings
    family: Family
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    """By matrix, what its directions are ordered by."""
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By matrix, (n_out, n_in)."""
    store: StateFolder | None = None
    """Where directions lie: those of a whole model are half as large again as it is."""
    energies: dict[str, Tensor] = field(default_factory=dict)
    """By matrix, those of its directions over their sum."""
    fixed: dict[str, Tensor] = field(default_factory=dict)
    """Masks that nothing trains."""

    @property
    def scale(self) -> float:
        """What adapters are multiplied by."""
        return self.settings.alpha / max(1, self.settings.adapter_rank)

    @property
    def masks(self) -> dict[str, nn.Parameter]:
        """By matrix."""
        end = f".{MASK}"
        return {
            name.removesuffix(end): one
            for name, one in self.parameters.items()
            if name.endswith(end)
        }

    def create(self, path: str, block: nn.Module) -> None:
        """Make the trained tensors of a layer, and put its directions on disk."""
        tensors: dict[str, Tensor] = {}
        for name in self.present(block):
            full, layer = f"{path}.{name}", linear_at(block, name)
            weight = float_weight(layer)
            found = directions_of(weight)
            tensors |= {f"{name}.{part}": one for part, one in found._asdict().items()}
            self.shapes[full] = (weight.shape[0], weight.shape[1])
            ones = torch.ones_like(found.singular_values)
            self.energies[full] = relative_energy(found)
            if self.settings.method == "largest":
                self.scores[full] = self.energies[full]
            else:
                self.scores[full] = ones
                self.parameters[f"{full}.{MASK}"] = nn.Parameter(ones.clone())
            self.adapter(full, weight.device)
        self._folder(path).save(1, {}, tensors)

    def settle_fixed(self) -> None:
        """With method `largest`: open what its order keeps, and close the rest, once and for all."""
        if self.settings.method != "largest":
            return
        for full, rank in self.ranks().items():
            mask = torch.zeros_like(self.scores[full])
            mask[:rank] = 1.0  # by falling singular value
            self.fixed[full] = mask

    def break_ties(self) -> None:
        """Order what closed in one step; there are hundreds of steps and a hundred times as many directions."""
        for full, scores in self.scores.items():
            self.scores[full] = without_ties(scores, self.energies[full])

    def attach(self, path: str, block: nn.Module) -> dict[str, nn.Parameter]:
        """Put a layer's matrices in terms of their directions; return its trained tensors."""
        members: dict[str, nn.Parameter] = {}
        if not path:
            return members
        stored = self._folder(path).load()
        if stored is None:
            raise RuntimeError(f"the directions of {path} are gone")
        for name in self.present(block):
            full, layer = f"{path}.{name}", linear_at(block, name)
            directions = Directions(
                *(stored.tensors[f"{name}.{part}"] for part in Directions._fields)
            )
            trained = [f"{full}.{part}" for part in (MASK, DOWN, UP)]
            members |= {one: self.parameters[one] for one in trained if one in self.parameters}
            mask = self.parameters.get(f"{full}.{MASK}", self.fixed.get(full))
            if mask is None:
                raise RuntimeError(f"{full} has no mask")
            masked = MaskedLinear(
                directions, bias_of(layer), mask.to(directions.up.device), self.gate,
                self.adapter(full, directions.up.device), self.scale,
            )  # fmt: skip
            block.set_submodule(name, masked)
        return members

    @property
    def gate(self) -> Gate:
        """What a mask does."""
        return straight_through if self.settings.method == "acip" else _as_it_is

    def adapter(self, full: str, device: torch.device) -> Adapter | None:
        """That of a matrix, `down` and `up`; None without adapters."""
        rank = self.settings.adapter_rank
        if not rank:
            return None
        return adapter_of(
            self.parameters, full, self.shapes[full], rank, self.settings.seed, device
        )

    def present(self, block: nn.Module) -> list[str]:
        """The matrices of a layer that have directions."""
        names = dict(block.named_modules())
        return [name for name in self.settings.matrices(self.family) if name in names]

    def factored(self) -> dict[str, Factored]:
        """All matrices, as the choice of a size sees them."""
        return {full: self.factored_one(full) for full in sorted(self.shapes)}

    def factored_one(self, full: str) -> Factored:
        """One of them."""
        scores = self.scores[full].cpu().numpy()
        return Factored(scores, *self.shapes[full], self.settings.adapter_rank)

    def ranks(self, keep: float | None = None) -> dict[str, int]:
        """By matrix, how many directions stay at the recipe's size, or at another share of the parameters."""
        matrices = self.factored()
        share = self.settings.keep if keep is None else keep
        return ranks_within(matrices, share * sum(one.whole for one in matrices.values()))

    def _folder(self, path: str) -> StateFolder:
        if self.store is None:
            raise RuntimeError("there is no place for directions")
        return self.store.inner(f"directions-{path}")


def _as_it_is(mask: Tensor) -> Tensor:
    return mask
