"""The calibration samples of a recipe, and a description of them for the report."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spq_core.calibration.texts import Text, non_blank_lines, refuse_shared_lines
from spq_core.calibration.windows import consecutive_windows, padded_lines, spread_windows
from spq_core.errors import DatasetError
from spq_core.model_files import read_json_object
from spq_core.modeling.tokenizer import load_tokenizer
from spq_core.recipe import Calibration

UNSEEN_WINDOWS = 8


@dataclass(frozen=True, slots=True)
class CalibrationSamples:
    """Token windows and where they came from."""

    rows: Int64[Tensor, "n length"]
    unseen: Int64[Tensor, "m length"]
    """Windows of the same text that nothing is fitted to; of `rows`, where the text has no others."""
    description: dict[str, Any]


def calibration_samples(
    settings: Calibration, text: Text, model_folder: Path
) -> CalibrationSamples:
    """Encode the first non-blank lines, or evenly spaced windows, of the text's calibration part.

    With `allow_evaluation_text` the lines are those of the evaluation part, which is what the SPQ
    authors do; the description then says so.

    Raises:
        CalibrationLeakError: a distinctive line is also evaluation text, and that is not allowed.
        DatasetError: the text is too short.
    """
    leaked = settings.allow_evaluation_text
    part = text.evaluation if leaked else text.calibration
    tokenizer = load_tokenizer(model_folder)
    length = settings.length
    if settings.form == "windows":
        length = min(length, _positions(model_folder) or length)
        lines = part.split("\n")
        windows = spread_windows(tokenizer, part, length, settings.samples)
    else:
        lines = non_blank_lines(part, settings.samples)
        windows = padded_lines(tokenizer, lines, settings.length)
    if not leaked:
        refuse_shared_lines(lines, text.evaluation)
    description = {
        "dataset": text.name,
        "origin": text.origin,
        "text_sha256": text.fingerprint,
        "samples_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "form": settings.form,
        "samples": settings.samples,
        "length": length,
        "is_evaluation_text": leaked,
    }
    return CalibrationSamples(windows, _unseen(tokenizer, part, windows), description)


def _unseen(
    tokenizer: PreTrainedTokenizerBase, part: str, rows: Int64[Tensor, "n length"]
) -> Int64[Tensor, "m length"]:
    """Windows between those in `rows`, evenly spaced."""
    try:
        windows = consecutive_windows(tokenizer, part, rows.shape[1], None)
    except DatasetError:
        return rows[:UNSEEN_WINDOWS]
    seen = {tuple(row) for row in rows.tolist()}
    fresh = [window for window in windows if tuple(window.tolist()) not in seen]
    if not fresh:
        return rows[:UNSEEN_WINDOWS]
    return torch.stack(fresh[:: -(-len(fresh) // UNSEEN_WINDOWS)])


def _positions(model_folder: Path) -> int | None:
    """How many positions the model has; windows are cut to it."""
    config = read_json_object(model_folder / "config.json")
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    return positions if isinstance(positions, int) else None
