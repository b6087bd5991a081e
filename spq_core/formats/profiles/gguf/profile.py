"""One GGUF file, for llama.cpp and what is built on it. Free of torch."""

from spq_core.formats.profiles.profile import Profile
from spq_core.models.gguf.metadata import objection_to

LOADING = """```sh
llama-server -m FILE.gguf            # or: llama-server -hf USER/REPOSITORY
ollama run hf.co/USER/REPOSITORY     # Ollama; LM Studio and Jan find the file by the repository's name
```

With llama-cpp-python: `Llama("FILE.gguf")`. The other files say where the weights come from and what they were measured to be.
"""

GGUF = Profile(
    name="gguf",
    format_name="GGUF",
    writing="spq_core.formats.profiles.gguf.writing",
    loading=LOADING,
    card={
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "llama.cpp", "spq"],
    },
    forms=frozenset({"dense", "ggml"}),
    bits=frozenset(),
    equal_layers=True,
    experts=False,
    width_multiple=32,
    single_file=True,
    refused=objection_to,
    towers=False,
)
