"""The calibration samples of a recipe, and a description of them for the report."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spq_core.data.calibration import AUTO, Calibration, Layers
from spq_core.data.texts import Text, non_blank_lines, refuse_shared_lines
from spq_core.data.windows import consecutive_windows, padded_lines, spread_windows
from spq_core.errors import DatasetError
from spq_core.models.model_folder import read_json_object
from spq_core.models.tokenizer import load_tokenizer, opening_tokens, require_rows

UNSEEN_WINDOWS = 8
ORDER_SEED = 42


@dataclass(frozen=True, slots=True)
class CalibrationSamples:
    """Token windows and where they came from."""

    rows: Int64[Tensor, "n length"]
    description: dict[str, Any]
    pads: int = 0
    """Tokens that are no text: lines are padded to one length."""


def calibration_samples(
    settings: Calibration, text: Text, model_folder: Path, layers: Layers
) -> CalibrationSamples:
    """Encode the first non-blank lines, or evenly spaced windows, of the text's calibration part.

    With `samples: auto` a shorter text gives as many as it has.

    Args:
        layers: of the model.

    With `allow_evaluation_text` the lines are those of the evaluation part, which is what the SPQ
    authors do; the description then says so.

    Raises:
        CalibrationLeakError: a distinctive line is also evaluation text, and that is not allowed.
        DatasetError: the text is too short.
    """
    leaked = settings.allow_evaluation_text
    part = text.evaluation if leaked else text.calibration
    tokenizer = load_tokenizer(model_folder)
    length = within_positions(settings.length, model_folder)
    pads, count = 0, settings.count(layers, length)
    others = _others(settings, text, tokenizer, length, count)
    own = count - sum(len(rows) for rows in others.values())
    if settings.form == "windows":
        lines = part.split("\n")
        windows = spread_windows(tokenizer, part, length, own, fewer=settings.samples == AUTO)
    else:
        lines = non_blank_lines(part, own, fewer=settings.samples == AUTO)
        windows = padded_lines(tokenizer, lines, length)
        pads = sum(max(0, length - len(tokenizer(line)["input_ids"])) for line in lines)
    windows = shuffled([windows, *others.values()])
    require_rows(windows, tokenizer, model_folder)
    if not leaked:
        refuse_shared_lines(lines, text.evaluation)
    description = {
        "dataset": text.name,
        "origin": text.origin,
        "text_sha256": text.fingerprint,
        "samples_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "form": settings.form,
        "samples": len(windows),
        "length": length,
        "is_evaluation_text": leaked,
        "opening_tokens": opening_tokens(tokenizer),
    }
    if settings.mixed_with:
        description["mixed"] = [
            {
                "dataset": one.name, "origin": one.origin, "text_sha256": one.fingerprint,
                "samples": len(others.get(one.name, ())),
            }
            for one in text.mixed
        ]  # fmt: skip
        short = (one.name for one in text.mixed if one.name not in others)
        description["left_out"] = [*text.left_out, *short]
    return CalibrationSamples(windows, description, pads)


def _others(
    settings: Calibration, text: Text, tokenizer: PreTrainedTokenizerBase, length: int, count: int
) -> dict[str, Int64[Tensor, "m length"]]:
    """Windows of the texts that are mixed in, by name: the settings' share of `count`, in equal parts, or as many as they have."""
    if settings.allow_evaluation_text or not text.mixed:
        return {}
    found = {}
    for one in text.mixed:
        lines = one.calibration.split("\n")
        refuse_shared_lines(lines, text.evaluation)
        refuse_shared_lines(lines, one.evaluation)
        share = int(count * settings.mixed_share / len(text.mixed))
        with suppress(DatasetError):  # one shorter than a window has nothing to give
            found[one.name] = spread_windows(tokenizer, one.calibration, length, share, fewer=True)
    return found


def shuffled(parts: Sequence[Int64[Tensor, "_ length"]]) -> Int64[Tensor, "n length"]:
    """All rows in a seeded order, so that some rows at even distances are of all parts; those of one part as they are."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat(list(parts))
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(ORDER_SEED))]


def unseen_windows(text: str, length: int, model_folder: Path) -> Int64[Tensor, "m length"]:
    """Some windows of a text, evenly spaced, for measuring.

    Raises:
        DatasetError: the text has not one.
    """
    tokenizer = load_tokenizer(model_folder)
    windows = consecutive_windows(tokenizer, text, length, None)
    return windows[:: -(-len(windows) // UNSEEN_WINDOWS)]


def within_positions(length: int, model_folder: Path) -> int:
    """A number of tokens, cut to the positions that the model has."""
    config = read_json_object(model_folder / "config.json")
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    return min(length, positions) if isinstance(positions, int) else length
