"""The whole way of a recipe on a two-layer toy of the same architecture, before hours go into it.

The toy has the source's configuration with small sizes, random weights, and the source's tokenizer. What
breaks here (a stage on this architecture, the export, the loader) would break at the end of the run.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from spq_core.artifact.load_check import compare
from spq_core.compression.compress import compress
from spq_core.data.texts import Text
from spq_core.errors import SpqError
from spq_core.evaluation.settings import Gates
from spq_core.machine import machine_failure
from spq_core.methods.settings import Toy
from spq_core.models.architectures import EXPERT_COUNTS
from spq_core.models.clean_copy import SourceModel
from spq_core.models.model_folder import side_files
from spq_core.planning.target import Target
from spq_core.progress import PhaseKind, Progress, phase
from spq_core.recipe.document import Recipe
from spq_core.workflow.load_gate import judged

LAYERS = 2
HEADS = 4
HEAD_DIM = 16
INNER = 128
GROUP = 32
EXPERTS = 4
EXPERT_WIDTHS = (
    "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "expert_ffn_hidden_size",
)  # fmt: skip
MOST_KINDS = 4
"""Of layers that are tried."""
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
SAMPLES = 2
TOKENS = 32
CHARACTERS = 200_000
"""Of calibration text: enough for the toy's samples, and quick to encode."""
BYTES_RATIO = 0.5
"""Targets are the real model's business; with codes stored by entropy this one is in reach of any."""

SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
OF_EXPERTS = frozenset((*EXPERT_COUNTS, *EXPERT_WIDTHS, *EXPERTS_PER_TOKEN, *SHARED_EXPERTS))
"""What released configurations of mixtures say, and the defaults of some types do not."""


class PreflightError(SpqError):
    """The recipe does not work on this architecture."""

    code = "preflight_failed"


def preflight(
    source: SourceModel, recipe: Recipe, text: Text | None, scratch: Path, progress: Progress
) -> None:
    """Compress, export, load, compare and generate, in seconds.

    Args:
        scratch: an existing folder; nothing is left in it.

    Raises:
        PreflightError, LoadGateError: saying what broke.
        SpqError: the recipe, the model or the text cannot be used.
    """
    progress.begin(phase(PhaseKind.PREFLIGHT), 1, "toy")
    folder = scratch / "preflight"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        toy = SourceModel(folder=folder / source.folder.name, name=source.name)
        reason = _write_toy(source.folder, toy.folder)
        if reason:
            progress.advance(f"skipped: no toy of this configuration can be made: {reason}")
            return
        _run(toy, recipe, text, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress.advance("a two-layer toy was compressed, loaded, compared, and generated")


def _run(toy: SourceModel, recipe: Recipe, text: Text | None, folder: Path) -> None:
    some = text and replace(
        text,
        calibration=text.calibration[:CHARACTERS],
        evaluation=text.evaluation[:CHARACTERS],
        mixed=(),
    )
    try:
        out, probe = folder / "out", folder / "probe.safetensors"
        compress(toy, small_recipe(recipe), out, text=some, probe_file=probe)
        with torch.no_grad():
            judged(compare(out, probe, toy.folder))
    except (SpqError, OSError, MemoryError, ImportError):
        raise  # of the model or the machine, and says so
    except Exception as error:
        if machine_failure(error) is not None:
            raise
        raise PreflightError(
            "the recipe does not work on a two-layer toy of this architecture: "
            f"{type(error).__name__}: {error}"[:500]
        ) from error


def small_recipe(recipe: Recipe) -> Recipe:
    """The recipe with few samples and few steps, and with an easy target or fixed amounts."""
    target = None
    if recipe.target is not None and recipe.by_entropy:
        target = Target(bytes_ratio=BYTES_RATIO, allocation=recipe.target.allocation)
    calibration = recipe.calibration.model_copy(update={"samples": SAMPLES, "length": TOKENS})
    toy = Toy(tokens=TOKENS, rank=HEAD_DIM, group=GROUP)
    stages = tuple(stage.for_preflight(toy, fixed=target is None) for stage in recipe.stages)
    changes = {"target": target, "calibration": calibration, "stages": stages, "gates": Gates()}
    return recipe.model_copy(update=changes)


def toy_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with two layers and small sizes; what is per layer is cut to those."""
    document: dict[str, Any] = config.to_dict()
    counts = (document.get("num_key_value_heads"), document.get("num_kv_heads"))
    of_keys = next((count for count in counts if count), config.num_attention_heads)
    kv_heads = max(1, HEADS * of_keys // config.num_attention_heads)
    hidden = HEADS * HEAD_DIM
    sizes = {
        "hidden_size": hidden, "num_attention_heads": HEADS, "head_dim": HEAD_DIM,
        "num_key_value_heads": kv_heads, "num_kv_heads": kv_heads, "intermediate_size": INNER,
        "ffn_dim": INNER, "n_inner": INNER, "ffn_hidden_size": INNER, "word_embed_proj_dim": hidden,
        "rotary_dim": HEAD_DIM // 2,
    }  # fmt: skip
    sizes |= dict.fromkeys(EXPERT_COUNTS, EXPERTS) | dict.fromkeys(EXPERT_WIDTHS, INNER)
    sizes |= {name: min(2, document.get(name) or 2) for name in EXPERTS_PER_TOKEN}
    sizes |= dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", *SHARED_EXPERTS), 1)
    sizes |= {
        "linear_num_key_heads": 2, "linear_num_value_heads": HEADS, "linear_key_head_dim": HEAD_DIM,
        "linear_value_head_dim": HEAD_DIM, "hidden_size_per_layer_input": HEAD_DIM, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0,
    }  # fmt: skip
    if document.get("kv_lora_rank"):  # what `head_dim` names is then the rotated half of a head
        half = HEAD_DIM // 2
        sizes |= {
            "q_lora_rank": HEAD_DIM, "kv_lora_rank": HEAD_DIM, "qk_rope_head_dim": half, "qk_nope_head_dim": half,
            "v_head_dim": HEAD_DIM, "qk_head_dim": HEAD_DIM, "head_dim": half,
        }  # fmt: skip
    names: dict[str, str] = dict(type(config).attribute_map)
    of_layers = {
        name: value
        for name, value in document.items()
        if isinstance(value, list) and len(value) == config.num_hidden_layers
    }
    indices = _of_each_kind(of_layers)
    document |= {name: [value[index] for index in indices] for name, value in of_layers.items()}
    by_layer = document.get("per_layer_config")
    if isinstance(by_layer, dict):
        kept = ((indices.index(int(at)), one) for at, one in by_layer.items() if int(at) in indices)
        document["per_layer_config"] = dict(kept)
    for name, size in (*sizes.items(), ("num_hidden_layers", len(indices))):
        stored = names.get(name, name)
        if document.get(stored) is not None or (name in OF_EXPERTS and stored in document):
            document[stored] = size
    return type(config).from_dict(document)


def _of_each_kind(of_layers: Mapping[str, list[Any]]) -> list[int]:
    """The first layer of each kind, by all lists with an entry for each layer; two layers where there are no kinds."""
    kinds: dict[str, int] = {}
    for index, values in enumerate(zip(*of_layers.values(), strict=True)):
        kinds.setdefault(repr(values), index)
    found = sorted(kinds.values())[:MOST_KINDS]
    return found if len(found) > 1 else list(range(LAYERS))


def _write_toy(source: Path, target: Path) -> str:
    """Write the toy; return why it cannot be made, if so."""
    try:
        config = toy_config(
            AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(target)
    except Exception as error:  # noqa: BLE001 - a toy that cannot be made says nothing of the model
        return f"{type(error).__name__}: {error}"[:200]
    for name in side_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return ""
