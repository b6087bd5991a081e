"""Every form of ours, loaded with our package. Free of torch."""

from typing import get_args

from spq_core.formats.packed.bits import Bits
from spq_core.formats.profiles.profile import Profile

LOADING = """```python
import spq_core  # of the project that made this (not PyPI's "spq"); teaches transformers the format
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/or/repo")
tokenizer = AutoTokenizer.from_pretrained("path/or/repo")
```

Without `spq_core` transformers refuses the model type; it never loads random weights.
"""

COMPACT = Profile(
    name="compact",
    format_name="our format",
    writing="spq_core.formats.profiles.compact.writing",
    loading=LOADING,
    card={"library_name": "spq", "tags": ["spq", "compressed"]},
    forms=frozenset({"dense", "int8", "packed", "coded", "range_coded", "adapted", "low_rank"}),
    bits=frozenset(get_args(Bits)),
    scale_bytes=3,  # a float16 scale and a zero point
)
