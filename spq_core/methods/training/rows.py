"""The token rows that a stage trains on."""

from pathlib import Path

import torch

from spq_core.data.samples import within_positions
from spq_core.data.texts import Text, refuse_shared_lines
from spq_core.data.training_rows import TrainingRows
from spq_core.data.windows import consecutive_windows, padded_lines
from spq_core.errors import DatasetError
from spq_core.methods.training.settings import TrainedSettings
from spq_core.models.tokenizer import load_tokenizer, require_rows


def training_rows(settings: TrainedSettings, text: Text, model_folder: Path) -> TrainingRows:
    """Encode as many rows of the text's calibration part as are used, in a seeded order.

    Raises:
        CalibrationLeakError: a distinctive line is also evaluation text.
        DatasetError: the text is too short.
    """
    tokenizer = load_tokenizer(model_folder)
    generator = torch.Generator().manual_seed(settings.seed)
    wanted = settings.steps * settings.batch
    length = within_positions(settings.length, model_folder)
    lines = [line for line in text.calibration.split("\n") if line.strip()]
    refuse_shared_lines(lines, text.evaluation)
    if settings.form == "windows":
        rows = consecutive_windows(tokenizer, text.calibration, length, None)
        rows = rows[torch.randperm(len(rows), generator=generator)[:wanted]]
        require_rows(rows, tokenizer, model_folder)
        return TrainingRows(rows, torch.ones_like(rows, dtype=torch.bool))
    lengths = [len(tokenizer(line)["input_ids"]) for line in lines]
    usable = [index for index, count in enumerate(lengths) if count > 1]  # else nothing follows
    if not usable:
        raise DatasetError(f"training needs lines of text; {text.name} has none of two tokens")
    order = torch.randperm(len(usable), generator=generator)[:wanted].tolist()
    picked = [usable[index] for index in order]
    tokenizer.padding_side = "right"  # so that no token sees a pad
    rows = padded_lines(tokenizer, [lines[index] for index in picked], length)
    require_rows(rows, tokenizer, model_folder)
    real = torch.arange(length) < torch.tensor([lengths[index] for index in picked])[:, None]
    return TrainingRows(rows, real)
