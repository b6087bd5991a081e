"""Which experts to remove: by what they contribute (REAP), by how often they are asked, or any; and what bits cost a mixture.

A small mixture is trained on the built-in text, byte by byte, for `MINUTES`; then a quarter or half of its experts go. Losses are of text
that nothing was trained on or calibrated with.
"""

import json
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedTokenizerFast

from spq_core.artifact.read import load_model
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.recipe.catalog import catalog, resolve
from spq_core.recipe.document import Recipe, parse_recipe
from tests.models import VOCABULARY, byte_tokenizer

MINUTES = float(sys.argv[1]) if len(sys.argv) > 1 else 6.0
RESULTS = Path(__file__).parent / "results" / "experts.json"
LENGTH, BATCH = 128, 16
CALIBRATION = {"dataset": "builtin", "form": "windows", "samples": 64, "length": LENGTH}


def rows_of(text: str, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All windows."""
    ids = torch.tensor(tokenizer(text).input_ids)
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def train(folder: Path, rows: torch.Tensor) -> None:
    """Sixteen experts, two of them for each token, with the usual loss that balances them."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=2, max_position_embeddings=LENGTH,
        router_aux_loss_coef=0.005, output_router_logits=True, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    started, step = time.monotonic(), 0
    while (spent := time.monotonic() - started) < 60 * MINUTES:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - spent / 60 / MINUTES)
        batch = rows[torch.randint(len(rows), (BATCH,))]
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    print(f"{step} steps, loss {float(loss.detach()):.3f}", flush=True)


@torch.no_grad()
def log_probabilities(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    """Of every token at every place."""
    model = load_model(folder, torch.float32)
    return torch.cat([model(some).logits.log_softmax(-1) for some in rows.split(16)])


def recipes() -> dict[str, Recipe]:
    """Pruned alone, and by bits alone."""
    found = {}
    for ratio in (0.25, 0.5):
        for score in ("reap", "frequency", "random"):
            stage = {"type": "prune-experts", "ratio": ratio, "score": score}
            found[f"{score} {ratio}"] = parse_recipe(
                {"stages": [stage], "calibration": CALIBRATION}
            )
    for name in ("int8", "balanced", "gptq-4"):
        calibration = catalog()[name].calibration.model_dump()
        found[name] = resolve(
            {"extends": name, "calibration": calibration | CALIBRATION | {"mixed_with": ()}}
        )
    return found


def main() -> None:
    """Train, compress, measure."""
    torch.set_num_threads(2)
    text, tokenizer = builtin_text(), byte_tokenizer()
    home = Path(tempfile.mkdtemp())
    source = home / "source"
    train(source, rows_of(text.calibration, tokenizer))
    unseen = rows_of(text.evaluation, tokenizer)[:256]
    wanted = log_probabilities(source, unseen)
    loss = functional.nll_loss(wanted[:, :-1].flatten(0, 1), unseen[:, 1:].flatten())
    table = {"source": {"loss": float(loss), "kl": 0.0, "bytes": size(source)}}
    for name, recipe in recipes().items():
        out = home / "out"
        compress(SourceModel(folder=source, name="toy"), recipe, out, text=text)
        found = log_probabilities(out, unseen)
        loss = functional.nll_loss(found[:, :-1].flatten(0, 1), unseen[:, 1:].flatten())
        kl = (wanted.exp() * (wanted - found)).sum(-1).mean()
        table[name] = {"loss": float(loss), "kl": float(kl), "bytes": size(out)}
        print(f"{name:16} loss {loss:.4f}  kl {kl:.4f}  {size(out):,} bytes", flush=True)
        shutil.rmtree(out)
    shutil.rmtree(home)
    RESULTS.write_text(
        json.dumps({"machine": platform.processor(), "minutes": MINUTES, "table": table}, indent=1)
        + "\n"
    )


def size(folder: Path) -> int:
    """Of weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    main()
