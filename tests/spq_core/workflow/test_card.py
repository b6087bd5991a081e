import re

import pytest
import yaml

from spq_core.workflow.card import work_done, write_card

MODULES = [
    *(
        {"layer": f"model.layers.{n}.self_attn.q_proj", "stage": "svd", "applied": n == 0,
         "figures": {"rank": 24 if n == 0 else 96, "full_rank": 96}}
        for n in range(2)
    ),
    *(
        {"layer": f"model.layers.{n}.mlp.{name}", "stage": "prune", "applied": n == 0,
         "figures": {"kept": 150 if n == 0 else 160, "neurons": 160}}
        for n in range(2) for name in ("gate_proj", "up_proj", "down_proj")
    ),
    *(
        {"layer": f"model.layers.{n}.mlp.up_proj", "stage": "quantize", "applied": True,
         "figures": {"bits": 4.0 + n, "relative_error": 0.1}}
        for n in range(2)
    ),
    {"layer": "model", "stage": "target", "applied": True, "figures": {"kl": 0.1}},
]  # fmt: skip


def row(name, **changes):
    figures = {
        "name": name, "bytes_on_disk": 1000, "resident_bytes": 1100, "dataset": "wikitext2",
        "perplexity": 20.5, "tokens": 32736, "kl": 0.0123, "top1": 0.95,
        "prefill_tokens_per_second": 10.0, "decode_tokens_per_second": None,
    }  # fmt: skip
    return figures | changes


RESULT = {
    "compression": {
        "recipe": {
            "apiVersion": "recipe/v1",
            "metadata": {"name": "mine", "description": "Ours <script>alert(1)</script>"},
            "profile": "compact",
            "stages": [{"type": "quantize"}],
            "calibration": {"dataset": "```\n<script>"},
        },
        "modules": MODULES, "seconds": 90.0, "ratio_to_source": 0.5, "ratio_to_fp32": 0.25,
        "source_dtype": "bfloat16",
        "calibration": {
            "samples": 16, "form": "windows", "length": 512, "origin": "the Hub",
            "is_evaluation_text": False,
        },
    },
    "evaluation": {
        "settings": {
            "datasets": {"wikitext2": {"origin": "the Hub"}}, "length": 1024, "device": "cpu",
            "scoring_dtype": "float32", "threads": 2, "trials": 5,
        }
    },
    "rows": [row("source", kl=None, top1=None), row("int8"), row("result")],
    "beaten_by_int8": True,
    "load_check": {"embedding": 0.0, "logits": 2e-7, "decoding": 4e-3},
}  # fmt: skip


@pytest.fixture
def card(tmp_path):
    write_card(tmp_path, "org/model", "abc123", "mit", RESULT, {"spq": "0.1", "torch": "2.13"})
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_what_the_hub_reads_is_there(card):
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["base_model"], head["base_model_relation"]) == ("org/model", "quantized")
    assert head["license"] == "mit"
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert metrics[0] == {"type": "perplexity", "value": 20.5}


def test_what_a_reader_wants_is_there(card):
    for words in (
        "commit `abc123`", "| int8 | 1,000 | 1,100 | 20.500 |", "smaller and better than this",
        "AutoModelForCausalLM.from_pretrained", "16 windows of the Hub, 512 tokens each",
        "2.0e-07 of their norm", "Made with spq 0.1, torch 2.13, in 1.5 minutes",
        "What these figures do not say",
    ):  # fmt: skip
        assert words in card, words
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)\n```", card, re.DOTALL)[1])
    assert recipe["stages"] == [{"type": "quantize"}]


def test_each_profile_says_how_it_is_loaded(tmp_path, card):
    assert "import spq_core" in card
    compression = RESULT["compression"]
    recipe = compression["recipe"] | {"profile": "portable"}
    result = RESULT | {"compression": compression | {"recipe": recipe}}
    write_card(tmp_path, "org/model", None, None, result, {})
    portable = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "import spq_core" not in portable
    assert "vllm serve" in portable


def test_text_from_outside_cannot_become_markup(card):
    assert "<script>alert" not in card
    fences = [line for line in card.splitlines() if line.startswith("```")]
    assert len(fences) == 4


def test_work_is_summed_up_by_stage():
    assert work_done(MODULES).splitlines() == [
        "* `svd`: 1 of 2 matrices became pairs of low rank, with 25% of the full rank in the mean.",
        "* `prune`: 1 of 2 MLPs lost neurons, 10 of 160 there.",
        "* `quantize`: 2 of 2 matrices were quantized, to 4.50 bits a weight in the mean of matrices.",
    ]
    assert work_done([]) == "Nothing was changed."


def test_texts_that_were_mixed_in_are_named_and_so_is_what_was_not_there(tmp_path):
    compression = RESULT["compression"]
    used = compression["calibration"] | {
        "mixed": [
            {"dataset": "a", "origin": "the A <b>", "samples": 5},
            {"dataset": "b", "origin": "the B", "samples": 3},
        ],
        "left_out": ["gsm8k"],
    }
    result = RESULT | {"compression": compression | {"calibration": used}}
    write_card(tmp_path, "org/model", None, None, result, {})
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (
        "16 windows of the Hub, 5 of the A b, 3 of the B among them, 512 tokens each; "
        "nothing of gsm8k, which could not be had."
    ) in card
