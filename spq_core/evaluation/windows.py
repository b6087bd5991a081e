"""How texts are cut for models, and whether they can be: found out before a model is loaded."""

from collections.abc import Iterable
from pathlib import Path

from spq_core.data.texts import Text
from spq_core.data.windows import consecutive_windows
from spq_core.errors import EvaluationError
from spq_core.evaluation.gguf import SUFFIX
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.config import read_config
from spq_core.models.model_folder import read_json_object
from spq_core.models.tokenizer import load_tokenizer, require_rows

DEFAULT_LENGTH = 1024


def require_measurable(folder: Path, texts: Iterable[Text], settings: EvaluationSettings) -> None:
    """Find out all that can be known before a model is loaded: hours of work may come first.

    Raises:
        EvaluationError: windows do not fit into the model's positions, or a text is too short.
        TokenizerError: there is no tokenizer, or it makes tokens that the model has no rows for.
    """
    length = window_length([folder], settings)
    tokenizer = load_tokenizer(folder)
    for text in texts:
        windows = consecutive_windows(tokenizer, text.evaluation, length, settings.limit)
        require_rows(windows, tokenizer, folder)


def window_length(folders: Iterable[Path], settings: EvaluationSettings) -> int:
    """Tokens per window: as set, else 1024 or the positions of the smallest model.

    Raises:
        EvaluationError: windows do not fit into a model's positions.
        UnsupportedModelError: transformers cannot read a configuration.
    """
    smallest = fewest_positions(folders)
    length = settings.length or min(DEFAULT_LENGTH, smallest or DEFAULT_LENGTH)
    if smallest is not None and length > smallest:
        raise EvaluationError(
            f"the model has {smallest} positions, windows of {length} tokens do not fit; choose shorter ones "
            "(--length, or evaluation.length)"
        )
    return length


def fitting(folders: Iterable[Path], settings: EvaluationSettings) -> EvaluationSettings:
    """The settings with a prompt and new tokens that fit into the models' positions."""
    smallest = fewest_positions(folders)
    if smallest is None or settings.prompt_tokens + settings.new_tokens <= smallest:
        return settings
    new = min(settings.new_tokens, smallest // 2)
    return settings.model_copy(update={"prompt_tokens": smallest - new, "new_tokens": new})


def fewest_positions(folders: Iterable[Path]) -> int | None:
    """Positions of the model that has fewest; None where no configuration says."""
    positions = [_positions(folder) for folder in folders if folder.suffix != SUFFIX]
    return min((count for count in positions if count is not None), default=None)


def _positions(folder: Path) -> int | None:
    """How many positions a model has; None where its configuration does not say."""
    read_json_object(folder / "config.json")  # says what is wrong better than transformers does
    config = read_config(folder)
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None
