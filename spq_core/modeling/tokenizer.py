"""Load a model folder's tokenizer, without ever running code from the folder."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spq_core.errors import ArtifactError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer.

    `trust_remote_code` is given: left out, transformers would ask on stdin whether to run code.

    Raises:
        ArtifactError: the folder has none that transformers can build.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{folder.name} has no usable tokenizer: {reason[:200]}") from None
