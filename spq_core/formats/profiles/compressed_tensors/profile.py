"""compressed-tensors, loaded by stock transformers and vLLM. Free of torch."""

from spq_core.formats.profiles.profile import Profile

LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/or/repo")
tokenizer = AutoTokenizer.from_pretrained("path/or/repo")
```

Stock transformers, with `pip install compressed-tensors`; it widens the weights when it loads them. vLLM takes the \
folder as it is (`vllm serve path/or/repo`), by its documentation of compressed-tensors "pack-quantized"; that was not \
run.
"""

PORTABLE = Profile(
    name="portable",
    format_name="compressed-tensors",
    writing="spq_core.formats.profiles.compressed_tensors.writing",
    loading=LOADING,
    card={
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["compressed-tensors", "spq", "vllm"],
    },
    forms=frozenset({"dense", "packed"}),
    bits=frozenset({4, 8}),
    equal_layers=True,
    tables=False,
    zero_points=False,
    whole_groups=True,
    input_major=False,
    experts=False,
    width_multiple=128,
    widened_by_readers=True,
)
