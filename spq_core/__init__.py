"""Compression of language models: recipes in, artifacts and measured figures out.

Importing this package lets `AutoModelForCausalLM.from_pretrained` load the artifacts it writes.
The package itself stays free of torch: the loader registers itself when transformers is imported,
before or after, so that the HTTP service can read recipes without a machine-learning stack.
"""

from wrapt import register_post_import_hook

register_post_import_hook("spq_core.artifact.registration:register", "transformers")
