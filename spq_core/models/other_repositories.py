"""What a folder or repository without config.json is, and what to name instead. Free of torch."""

import json
from collections.abc import Collection
from pathlib import Path

ADAPTER_FILE = "adapter_config.json"
SHOWN = 3


def what_instead(name: str, files: Collection[str], base_model: str | None) -> str:
    """Say what is there instead of a transformers model.

    Args:
        files: names, those in subfolders with `/`.
        base_model: what an adapter's configuration names, if there is one.
    """
    if ADAPTER_FILE in files:
        named = f" {base_model!r}" if base_model else ""
        return (
            f"{name} holds an adapter (PEFT), not a model: merge it into its base model{named} and name the "
            f"merged model, or name the base model{named} itself"
        )
    inside = sorted(file.rpartition("/")[0] for file in files if file.endswith("/config.json"))
    if inside:
        return (
            f"{name} has no config.json, but its subfolders {_some(inside)} do; name one of them as its subfolder "
            "(model.subfolder of a job, --subfolder)"
        )
    gguf = sorted(file for file in files if file.lower().endswith(".gguf"))
    if gguf:
        return (
            f"{name} holds GGUF files ({_some(gguf)}); name the original model, in safetensors, or one of the files "
            "(model.file of a job, --file), and allow_requantize where it is quantized"
        )
    if "params.json" in files or any(file.startswith("consolidated.") for file in files):
        return (
            f"{name} has no config.json; it is in its author's own format (params.json, consolidated weights). "
            "Name the transformers version of it, often called …-hf"
        )
    return f"{name} has no config.json; it is not a transformers model"


def what_instead_of_a_folder(folder: Path) -> str:
    """`what_instead` of a local folder."""
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    files += [f"{path.parent.name}/{path.name}" for path in folder.glob("*/config.json")]
    return what_instead(folder.name, files, base_of_adapter(folder / ADAPTER_FILE))


def base_of_adapter(path: Path) -> str | None:
    """The base model that an adapter's configuration names."""
    try:
        return base_named_in(path.read_bytes())
    except OSError:
        return None


def base_named_in(text: bytes) -> str | None:
    """The base model that the text of an adapter's configuration names."""
    try:
        base = json.loads(text)["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return base[:200] if isinstance(base, str) else None


def _some(names: list[str]) -> str:
    more = " …" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
