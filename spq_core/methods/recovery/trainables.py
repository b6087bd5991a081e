"""What a recovery trains: adapters beside linear layers, and parameters in their places."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from spq_core.errors import RecipeError
from spq_core.formats.adapted.linear import AdaptedLinear
from spq_core.formats.slicing import (
    AnyLinear,
    bias_of,
    dense_linear,
    float_linears,
    float_weight,
    is_float,
    is_one_matrix,
    is_table,
)
from spq_core.methods.recovery.settings import RecoverSettings
from spq_core.methods.training.adapters import DOWN, UP, adapter_of


@dataclass(slots=True)
class AdapterParameters:
    """All trained tensors by full name, in float32; they outlive the blocks they are put into."""

    settings: RecoverSettings
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What adapters are multiplied by."""
        return self.settings.alpha / self.settings.rank

    def attach(self, path: str, block: nn.Module) -> dict[str, nn.Parameter]:
        """Put trained tensors into a block, and make its linear layers differentiable.

        Codes become float32 weights for as long as the block is in memory.

        Returns:
            The block's trained tensors.
        """
        members: dict[str, nn.Parameter] = {}
        for name, module in list(block.named_modules()):
            full = f"{path}.{name}" if path else name
            if not is_one_matrix(module):
                members |= self._put_in(full, module, block)
            elif path:
                dense = dense_linear(float_weight(module), bias_of(module))
                block.set_submodule(name, self._with_adapter(full, dense, members))
        return members

    def _with_adapter(
        self, full: str, dense: nn.Linear, members: dict[str, nn.Parameter]
    ) -> nn.Module:
        """A layer with its adapter beside it, which is among the members then; itself without one."""
        if self.settings.adapters == "none":
            return dense
        down, up = self._adapter(full, dense)
        members |= {f"{full}.{DOWN}": down, f"{full}.{UP}": up}
        return AdaptedLinear(dense, down, up, self.scale)

    def _put_in(self, full: str, module: nn.Module, block: nn.Module) -> dict[str, nn.Parameter]:
        """Put a module's trained parameters in their places."""
        members: dict[str, nn.Parameter] = {}
        for key, parameter in list(module.named_parameters(recurse=False)):
            if self._is_trained(module):
                trained = self._own(f"{full}.{key}", parameter)
                members[f"{full}.{key}"] = trained
                setattr(module, key, trained)
                for _, other in float_linears(block):  # a tied head follows its embedding
                    if other.weight is parameter:
                        other.weight = trained
        return members

    def merge_or_attach(self, path: str, block: nn.Module) -> list[str]:
        """Leave what was trained in a block; return the names of the changed modules."""
        changed = []
        for name, module in list(block.named_modules()):
            full = f"{path}.{name}" if path else name
            if f"{full}.{UP}" in self.parameters and is_one_matrix(module):
                block.set_submodule(name, self._settled(full, module))
                changed.append(name)
            for key, parameter in module.named_parameters(recurse=False):
                if f"{full}.{key}" in self.parameters:
                    parameter.data = self.parameters[f"{full}.{key}"].data.to(parameter.dtype)
                    changed.append(name)
        return changed

    def _settled(self, full: str, module: AnyLinear) -> nn.Module:
        down = self.parameters[f"{full}.{DOWN}"].data
        up = self.scale * self.parameters[f"{full}.{UP}"].data
        if self.settings.adapters == "kept":
            return AdaptedLinear(module, down, up)
        if not is_float(module):
            raise RecipeError(f"{full} is quantized; adapters can only be kept beside it")
        return dense_linear(float_weight(module) + up @ down, bias_of(module))

    def _is_trained(self, module: nn.Module) -> bool:
        if is_table(module):
            return "embedding" in self.settings.trains
        own = list(module.parameters(recurse=False))
        floating = all(parameter.is_floating_point() for parameter in own)
        return "norms" in self.settings.trains and floating

    def _own(self, name: str, parameter: Tensor) -> nn.Parameter:
        if name not in self.parameters:
            self.parameters[name] = nn.Parameter(parameter.detach().float().clone())
        return self.parameters[name]

    def _adapter(self, full: str, module: AnyLinear) -> tuple[nn.Parameter, nn.Parameter]:
        shape = (module.out_features, module.in_features)
        device = next(module.parameters()).device
        return adapter_of(
            self.parameters, full, shape, self.settings.rank, self.settings.seed, device
        )
