"""Names of the files that make up a model folder. Free of torch."""

SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "LICENSE", "LICENSE.txt", "LICENSE.md",
)  # fmt: skip
"""Beside configuration and weights: fetched from a repository, carried into an artifact."""
