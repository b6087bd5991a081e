"""What transformers looks up by model type is looked up by that of an artifact's source.

An artifact's model type has our prefix, so that nobody loads it without us. transformers 5 also chooses
tokenizer classes by model type, corrects what is known to be wrong in the files of some types, and repairs
the splitting rule of one family by the model type it reads from config.json. Under our prefix none of that
would happen, and the same files would give other token ids than the source's.
"""

import json
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.utils import cached_file

from spq_core.models.architectures import ARTIFACT_PREFIX

HUB_ARGUMENTS = (
    "revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder",
)  # fmt: skip
"""Of `from_pretrained`: where files come from."""
REPAIR = "_patch_mistral_regex"
"""Of a tokenizer class: looks into config.json itself, whatever configuration it was given."""


def base_config(config: PretrainedConfig) -> PretrainedConfig:
    """The source's configuration, of the class and type it had before it was compressed."""
    document = config.to_dict()
    base = str(document.pop("model_type")).removeprefix(ARTIFACT_PREFIX)
    document.pop("quantization_config", None)
    made: PretrainedConfig = AutoConfig.for_model(base, **document)
    made._name_or_path = config._name_or_path  # noqa: SLF001 - some types are known by their names
    return made


def is_artifact(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of one of our artifacts."""
    return str(config.model_type).startswith(ARTIFACT_PREFIX)


def look_up_as_base() -> None:
    """Let tokenizers of artifacts be found as their sources' are. Call it once."""
    find = AutoTokenizer.from_pretrained
    AutoTokenizer.from_pretrained = wraps(find)(_finding_as_base(find))
    repair = getattr(PreTrainedTokenizerFast, REPAIR, None)
    if repair is not None:
        setattr(PreTrainedTokenizerFast, REPAIR, classmethod(_repairing_as_base(repair.__func__)))


def _finding_as_base(find: Callable[..., Any]) -> Callable[..., Any]:
    """`AutoTokenizer.from_pretrained` that gives itself the base configuration of an artifact."""

    def found(name: Any, *inputs: Any, **named: Any) -> Any:
        if named.get("config") is None and not named.get("gguf_file"):
            where = {key: named[key] for key in HUB_ARGUMENTS if key in named}
            try:
                config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
            except (
                ValueError,
                OSError,
            ):  # the tokenizer of no model; transformers knows what to do
                config = None
            if config is not None and is_artifact(config):
                named["config"] = base_config(config)
        elif named.get("config") is not None and is_artifact(named["config"]):
            named["config"] = base_config(named["config"])
        return find(name, *inputs, **named)

    return found


def _repairing_as_base(repair: Callable[..., Any]) -> Callable[..., Any]:
    """The repair, shown a config.json with the base type where the folder is an artifact."""

    def repaired(cls: type, tokenizer: Any, name: Any, **named: Any) -> Any:
        document = _artifact_document(name, named)
        if document is None:
            return repair(cls, tokenizer, name, **named)
        document["model_type"] = str(document["model_type"]).removeprefix(ARTIFACT_PREFIX)
        with tempfile.TemporaryDirectory(prefix="spq-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(document), encoding="utf-8")
            return repair(cls, tokenizer, folder, **(named | {"is_local": True}))

    return repaired


def _artifact_document(name: Any, named: dict[str, Any]) -> dict[str, Any] | None:
    """The config.json there, if it is an artifact's."""
    where = {key: named[key] for key in ("cache_dir", "token", "revision") if named.get(key)}
    try:
        path = cached_file(
            name, "config.json",
            local_files_only=True,  # it was read just before, to find the tokenizer
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False, **where,
        )  # fmt: skip
        document = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict):
        return None
    return document if str(document.get("model_type", "")).startswith(ARTIFACT_PREFIX) else None
