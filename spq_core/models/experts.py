"""Experts of a mixture, each with linear layers of its own, in the place of transformers' fused tensors.

transformers 5 holds all experts of a layer in two tensors with three axes. Whatever is done to matrices is done to
linear layers, and an expert that computes in codes of its own is never widened with the others; so the module is
replaced by one with the same arguments, the same routing and the same activation.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

FUSED_AXES = 3
FUSED_MARK = "is_transposed"
"""Attribute of every module that transformers' interface of experts was applied to."""


class Expert(nn.Module):
    """Two matrices: `gate_up_proj`, or `up_proj` where nothing is gated, and `down_proj`."""

    def __init__(self, first: str, sizes: tuple[int, int, int], *, bias: bool) -> None:
        """Make them on the meta device.

        Args:
            sizes: inputs, outputs of the first matrix, inputs of the second.
        """
        super().__init__()
        hidden, first_out, inner = sizes
        self.first = first
        setattr(self, first, nn.Linear(hidden, first_out, bias=bias, device="meta"))
        self.down_proj = nn.Linear(inner, hidden, bias=bias, device="meta")


class SeparateExperts(nn.Module):
    """All experts of a layer, named by their numbers."""

    def __init__(self, fused: nn.Module) -> None:
        """Take the place of a fused module; its weights are not taken over."""
        super().__init__()
        module: Any = fused
        self.first = "gate_up_proj" if module.has_gate else "up_proj"
        self.is_transposed = bool(module.is_transposed)
        self.has_bias = bool(module.has_bias)
        first, down = getattr(module, self.first), module.down_proj
        if self.is_transposed:
            first, down = first.mT, down.mT
        self.num_experts = first.shape[0]
        sizes = (int(first.shape[2]), int(first.shape[1]), int(down.shape[2]))
        for index in range(self.num_experts):
            self.add_module(str(index), Expert(self.first, sizes, bias=self.has_bias))
        # In a tuple, so that it is no module of ours: it has an activation, and no weights any more.
        self._activation = (_without_weights(module),)
        self.pooled: tuple[int, ...] | None = None
        """Experts to send all tokens to, for whoever only measures what their matrices receive; nothing comes out then."""

    def forward(
        self,
        hidden_states: Float[Tensor, "*tokens hidden"],
        top_k_index: Int64[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "*tokens hidden"]:
        """The weighted sum of what each token's experts make of it."""
        states = hidden_states.reshape(-1, hidden_states.shape[-1])
        result = torch.zeros_like(states)
        if self.pooled is not None:
            for index in self.pooled:
                self._through(index, states)
            return result.view_as(hidden_states)
        chosen = top_k_index.reshape(states.shape[0], -1)
        weights = top_k_weights.reshape(chosen.shape)
        for index in torch.unique(chosen).tolist():
            if index >= self.num_experts:  # of a token that goes to none
                continue
            tokens, places = torch.where(chosen == index)
            output = self._through(index, states[tokens]) * weights[tokens, places, None]
            result = result.index_add(0, tokens, output.to(result.dtype))
        return result.view_as(hidden_states)

    def keep(self, numbers: Sequence[int]) -> None:
        """Leave only these, numbered anew."""
        staying = [self.get_submodule(str(number)) for number in numbers]
        for index in range(self.num_experts):
            delattr(self, str(index))
        for index, expert in enumerate(staying):
            self.add_module(str(index), expert)
        self.num_experts = len(staying)

    def _through(self, index: int, states: Float[Tensor, "n hidden"]) -> Float[Tensor, "n hidden"]:
        expert = self.get_submodule(str(index))
        first: Tensor = expert.get_submodule(self.first)(states)
        activation = self._activation[0]
        inner = (
            activation._apply_gate(first)  # noqa: SLF001 - where transformers has it
            if self.first == "gate_up_proj"
            else activation.act_fn(first)
        )
        output: Tensor = expert.get_submodule("down_proj")(inner)
        return output


class SortedExperts(SeparateExperts):
    """Experts that are given all tokens once for each of them, weighed before, zeros where they are not asked for (Llama 4)."""

    def __init__(self, fused: nn.Module) -> None:
        """Take the place of a fused module, which says less of itself than others do."""
        described = _without_weights(fused)
        described._parameters = dict(fused._parameters)  # noqa: SLF001 - its own stay as they are
        described.has_gate, described.is_transposed, described.has_bias = True, True, False
        described._apply_gate = partial(_gated, described.act_fn)  # noqa: SLF001 - as others have it
        super().__init__(described)

    def forward(  # type: ignore[override]
        self, hidden_states: Float[Tensor, "experts_times_tokens hidden"]
    ) -> Float[Tensor, "experts_times_tokens hidden"]:
        """What each expert makes of its tokens, in the same order."""
        states = hidden_states.reshape(self.num_experts, -1, hidden_states.shape[-1])
        result = torch.zeros_like(states)
        if self.pooled is not None:
            everything = states.sum(dim=0)  # each token as the expert that it asks for receives it
            for index in self.pooled:
                self._through(index, everything)
            return result.view_as(hidden_states)
        for index in range(self.num_experts):
            (tokens,) = torch.where(states[index].any(dim=-1))
            if len(tokens):
                output = self._through(index, states[index, tokens]).to(result.dtype)
                result = result.index_put((torch.full_like(tokens, index), tokens), output)
        return result.view_as(hidden_states)


def _gated(activation: nn.Module, first: Tensor) -> Tensor:
    gate, up = first.chunk(2, dim=-1)
    gated: Tensor = up * activation(gate)
    return gated


def _without_weights(module: nn.Module) -> Any:
    bare = copy.copy(module)
    bare._parameters = {}  # noqa: SLF001 - a shallow copy shares everything but this
    return bare


def separate_experts(model: nn.Module) -> None:
    """Replace every fused module of experts in place."""
    for name, module in list(model.named_modules()):
        if _is_fused(module):
            model.set_submodule(name, SeparateExperts(module))
        elif _is_sorted(module):
            model.set_submodule(name, SortedExperts(module))


def _is_fused(module: nn.Module) -> bool:
    found: Any = module
    known = hasattr(found, FUSED_MARK) and hasattr(found, "_apply_gate")
    return known and not getattr(found, "has_post_expert_norm", False)


def _is_sorted(module: nn.Module) -> bool:
    """Whether a module has all experts' matrices in two tensors, and receives nothing but states."""
    own = dict(module.named_parameters(recurse=False))
    fused = own.keys() == {"gate_up_proj", "down_proj"} and all(
        tensor.ndim == FUSED_AXES for tensor in own.values()
    )
    return fused and hasattr(module, "act_fn") and len(signature(module.forward).parameters) == 1


ROUTERS = frozenset({"gate", "router"})
"""Names of modules whose tensors have a row for each expert."""
COUNTS = frozenset(
    {"num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts", "n_experts"}
)
"""Attributes with the number of experts."""


def cut_experts(block: nn.Module, path: str, kept: Int64[Tensor, " k"]) -> None:
    """Leave only some experts of a block, numbered anew, and their rows of the router; in place.

    Args:
        path: of the module that holds them.
    """
    experts = block.get_submodule(path)
    if not isinstance(experts, SeparateExperts):
        raise TypeError(f"{path} holds no experts")
    before = experts.num_experts
    experts.keep(kept.tolist())
    parent = block.get_submodule(path.rpartition(".")[0])
    for name, module in parent.named_modules():
        words = set(name.split("."))
        if module is parent or words & ROUTERS:
            _cut_rows(module, before, kept)


def _cut_rows(module: nn.Module, count: int, kept: Int64[Tensor, " k"]) -> None:
    own: Any = module
    for tensors in (own._parameters, own._buffers):  # noqa: SLF001 - none is without a value otherwise
        for name, tensor in tensors.items():
            if tensor is None or not tensor.ndim or tensor.shape[0] != count:
                continue
            cut = tensor.data[kept.to(tensor.device)]
            tensors[name] = (
                nn.Parameter(cut, requires_grad=False) if isinstance(tensor, nn.Parameter) else cut
            )
    for name in COUNTS & vars(module).keys():
        if getattr(own, name) == count:
            setattr(own, name, len(kept))
    if isinstance(module, nn.Linear) and module.out_features == count:
        module.out_features = len(kept)


def modules_of_experts(block: nn.Module) -> Iterator[tuple[str, SeparateExperts]]:
    """Those within a block, by name."""
    for name, module in block.named_modules():
        if isinstance(module, SeparateExperts):
            yield name, module


def fused_parts(model: nn.Module) -> dict[str, tuple[str, int, bool]]:
    """Where each tensor of an expert is in transformers' model.

    Returns:
        by full name: the fused tensor's name, the expert's number, and whether the matrix lies transposed there.
    """
    found: dict[str, tuple[str, int, bool]] = {}
    for path, experts in modules_of_experts(model):
        for index in range(experts.num_experts):
            for matrix in (experts.first, "down_proj"):
                ours, theirs = f"{path}.{index}.{matrix}", f"{path}.{matrix}"
                found[f"{ours}.weight"] = (theirs, index, experts.is_transposed)
                if experts.has_bias:
                    found[f"{ours}.bias"] = (f"{theirs}_bias", index, False)
    return found
