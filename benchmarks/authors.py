"""A plain re-implementation of the SPQ authors' procedure, for comparison only (arXiv:2602.18420).

Whole model in memory in float32; each matrix decomposed twice, once for its rank and once for its
factors; statistics of gate, up and down collected though only up is used; a Python loop over rows
to quantize per channel. Written from the paper's description; the figures it gives are checked
against ours by the stage benchmark.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spq_core.methods.pruning.ratios import layer_ratios

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def svd_stage(model: PreTrainedModel, variance: float) -> int:
    """Factorise in place; return how many matrices were."""
    reductions = {}
    for name, linear in list(_linears(model, ATTENTION)):
        values = torch.linalg.svd(linear.weight.float(), full_matrices=False).S
        kept = (values**2).cumsum(0) / (values**2).sum()
        rank = int(torch.searchsorted(kept, variance)) + 1
        reductions[name] = max(0.1, min(1 - rank / len(values), 1.0))
    changed = 0
    for name, linear in list(_linears(model, ATTENTION)):
        n_out, n_in = linear.weight.shape
        u, s, vh = torch.linalg.svd(linear.weight.float(), full_matrices=False)
        rank = max(1, int((1 - reductions[name]) * len(s)))
        if rank / len(s) > 0.8 or rank * (n_out + n_in) >= n_out * n_in:
            continue
        first = nn.Linear(n_in, rank, bias=False)
        second = nn.Linear(rank, n_out, bias=False)
        first.weight.data, second.weight.data = vh[:rank], u[:, :rank] * s[:rank]
        model.set_submodule(name, nn.Sequential(first, second))
        changed += 1
    return changed


def prune_stage(model: PreTrainedModel, windows: Tensor, max_ratio: float) -> list[int]:
    """Cut MLPs in place; return the widths kept."""
    sums: dict[str, Tensor] = {}
    handles = []
    for name, linear in _linears(model, MLP):

        def note(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            sums[name] = sums.get(name, 0) + output.detach().abs().mean(dim=(0, 1))

        handles.append(linear.register_forward_hook(note))
    with torch.no_grad():
        for window in windows:
            model(window[None])
    for handle in handles:
        handle.remove()
    layers = model.model.layers
    scores = [sums[f"model.layers.{i}.mlp.up_proj"] / len(windows) for i in range(len(layers))]
    ratios = layer_ratios([float(score.mean()) for score in scores], max_ratio)
    widths = []
    for layer, score, ratio in zip(layers, scores, ratios, strict=True):
        count = int(score.numel() * (1 - ratio))
        kept = torch.topk(score, count).indices.sort().values
        for name in ("gate_proj", "up_proj"):
            getattr(layer.mlp, name).weight.data = getattr(layer.mlp, name).weight.data[kept]
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, kept]
        widths.append(count)
    return widths


def quantize_stage(model: PreTrainedModel) -> int:
    """Round every linear layer to 8 bits by percentile mode; return how many per channel."""
    linears = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    cutoff = torch.tensor([float(one.weight.shape[0]) for _, one in linears]).quantile(0.5)
    per_channel = 0
    for _, linear in linears:
        weight = linear.weight.data
        if weight.shape[0] >= cutoff:
            codes, scales = torch.empty_like(weight, dtype=torch.int8), torch.empty(len(weight))
            for row in range(len(weight)):
                scales[row] = torch.clamp(weight[row].abs().max() / 127, min=1e-6)
                codes[row] = torch.clamp(torch.round(weight[row] / scales[row]), -127, 127).to(
                    torch.int8
                )
            per_channel += 1
        else:
            scale = torch.clamp(weight.abs().max() / 127, min=5e-7)
            codes = torch.clamp(torch.round(weight / scale), -127, 127).to(torch.int8)
        linear.register_buffer("codes", codes)
    return per_channel


def _linears(model: PreTrainedModel, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in names:
            yield name, module
