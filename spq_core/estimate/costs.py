"""Memory, disk and time of a run before it starts.

Constants were fitted to runs on two cores (AVX-512) of SmolLM2-135M and of Llama-shaped models with
1,024 to 2,048 columns, 2 to 34 layers and 49,152 to 131,072 tokens in the vocabulary. Peaks have two
candidates: a decoder layer with what is measured at it, and the block with embedding and head.
"""

from spq_core.data.calibration import PASSED_SECONDS, Layers, sensitivity_tokens
from spq_core.estimated_range import Range
from spq_core.evaluation.bounds import GROUP_BYTES, LEAST_POSITIONS, LOGITS_AT_ONCE, WIDE_HEAD_BYTES
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.formats.profiles.registry import profile_named
from spq_core.models.shapes import ModelShapes
from spq_core.recipe.document import Recipe

MB = 1_000_000
PROGRAM = 510 * MB
"""Interpreter, torch, transformers, and what the toy of the preflight leaves behind."""
DOUBLE = 8
FLOAT_BYTES = 4
EVALUATION_LENGTH = 1024
CORPUS_TOKENS = 300_000
"""Of a whole evaluation text, where no limit is set."""
LOGIT_COPIES = 8
"""Tensors of positions · vocabulary floats that scoring holds at once."""
ROOM = 1.15
"""Of what is loaded: what works on it."""
TASK_BATCH, TASK_TOKENS = 8, 512
"""Sequences that a task puts at once, and tokens of a long one."""
COPY_BYTES_PER_SECOND = 65e6
SCORED_SECONDS = 2.1e-11
"""Per token and weight, forward."""
DECODED_SECONDS = 3e-10
"""Per new token and weight."""
START_SECONDS = 4.0


def compression_peak(recipe: Recipe, shapes: ModelShapes) -> float:
    """Highest resident memory while compressing, in bytes."""
    calibrated = recipe.quantize is not None and recipe.quantize.needs_calibration
    layer = sum(part.elements for part in shapes.largest_layer.values()) * shapes.item_bytes
    tables = shapes.embedding.elements + (shapes.head.elements if shapes.head else 0)
    rest = tables * shapes.item_bytes
    widest = shapes.widest_input
    if recipe.by_entropy:
        at_rest = 727 * MB + 5.6 * rest
    elif _embedding_stays(recipe):
        at_rest = 585 * MB + 2.9 * rest
    elif calibrated:
        at_rest = 1030 * MB + 1.45 * rest
    else:
        at_rest = 790 * MB + 1.75 * rest
    if calibrated:
        at_layer = PROGRAM + 2 * layer + 2.57 * DOUBLE * widest**2
    else:
        at_layer = PROGRAM + max(stage.layer_copies for stage in recipe.stages) * layer
    return max(at_rest, at_layer) + _samples(recipe, shapes)


def _embedding_stays(recipe: Recipe) -> bool:
    settings = recipe.quantize
    return settings is None or not settings.embedding or not profile_named(recipe.profile).tables


def _samples(recipe: Recipe, shapes: ModelShapes) -> float:
    """Hidden states of the calibration samples, and what attention makes of them."""
    if not recipe.needs_calibration:
        return 0.0
    return 2.0 * float(calibration_tokens(recipe, shapes) * shapes.hidden * FLOAT_BYTES)


def calibration_tokens(recipe: Recipe, shapes: ModelShapes) -> int:
    """Tokens of all calibration samples."""
    layers = Layers(shapes.widest_input, shapes.layer_elements)
    return recipe.calibration.count(layers) * recipe.calibration.length


def evaluation_peak(
    shapes: ModelShapes, settings: EvaluationSettings, resident: float, *, baseline: bool
) -> float:
    """Highest resident memory while models are measured on a CPU, in bytes."""
    scoring, loaded = scoring_peak(shapes, settings), 0.0
    if settings.throughput:  # all models at once, in their stored form
        loaded = shapes.source_bytes + resident + (shapes.elements if baseline else 0)
    if settings.tasks:
        logits = 2 * TASK_BATCH * TASK_TOKENS * shapes.embedding.n_out * FLOAT_BYTES
        loaded = max(loaded, shapes.elements * FLOAT_BYTES + logits)
    return max(scoring, PROGRAM + ROOM * loaded)


def scoring_peak(shapes: ModelShapes, settings: EvaluationSettings) -> float:
    """The least that measuring takes: one decoder layer, two heads, hidden states of some windows, and logits."""
    length = settings.length or EVALUATION_LENGTH
    layer = sum(part.elements for part in shapes.largest_layer.values()) * FLOAT_BYTES
    table = shapes.embedding.elements
    wide = table * FLOAT_BYTES
    head = wide if wide <= WIDE_HEAD_BYTES else table * shapes.item_bytes
    states = min(GROUP_BYTES, _windows(settings, length) * length * shapes.hidden * FLOAT_BYTES)
    positions = max(LEAST_POSITIONS, LOGITS_AT_ONCE // shapes.embedding.n_out)
    logits = LOGIT_COPIES * positions * shapes.embedding.n_out * FLOAT_BYTES
    return PROGRAM + 2 * layer + 2 * head + 2 * states + logits


def _windows(settings: EvaluationSettings, length: int) -> int:
    return settings.limit or CORPUS_TOKENS // length


def scratch_bytes(
    recipe: Recipe,
    shapes: ModelShapes,
    artifact: float,
    settings: EvaluationSettings | None,
    *,
    baseline: bool,
) -> float:
    """Disk that a run needs beside the source: artifact, baseline, spooled blocks, hidden states."""
    passes = sum(1 for stage in recipe.stages if not stage.quantizes)
    spooled = shapes.source_bytes if passes else 0
    states = 0
    if recipe.target is not None:
        looked_at = sensitivity_tokens(calibration_tokens(recipe, shapes))
        states = looked_at * shapes.hidden * FLOAT_BYTES * len(shapes.layers)
    measured = 0
    if settings is not None:  # what arrives at the source's head
        length = settings.length or EVALUATION_LENGTH
        tokens = _windows(settings, length) * length * len(settings.perplexity)
        measured = tokens * shapes.hidden * FLOAT_BYTES
    return artifact + (shapes.elements if baseline else 0) + max(spooled + states, measured)


def compression_seconds(recipe: Recipe, shapes: ModelShapes) -> Range:
    """Seconds on two cores; other machines, and other work on this one, change it most."""
    seconds = START_SECONDS + shapes.source_bytes / COPY_BYTES_PER_SECOND
    seconds += calibration_seconds(recipe, shapes)
    seconds += sum(stage.seconds(shapes) for stage in recipe.stages)
    if recipe.target is not None:
        looked_at = sensitivity_tokens(calibration_tokens(recipe, shapes))
        seconds += 3 * SCORED_SECONDS * looked_at * shapes.elements
    return Range(0.5 * seconds, seconds, 3 * seconds)


def calibration_seconds(recipe: Recipe, shapes: ModelShapes) -> float:
    """Seconds on two cores for passing the calibration tokens through the layers."""
    looks = sum(stage.passes_samples for stage in recipe.stages)
    return looks * PASSED_SECONDS * calibration_tokens(recipe, shapes) * shapes.layer_elements


def evaluation_seconds(shapes: ModelShapes, settings: EvaluationSettings, models: int) -> Range:
    """Seconds to measure so many models."""
    length = settings.length or EVALUATION_LENGTH
    tokens = settings.limit * length if settings.limit else CORPUS_TOKENS
    seconds = models * tokens * len(settings.perplexity) * SCORED_SECONDS * shapes.elements
    if settings.throughput:
        decoded = models * (settings.trials + 1) * settings.new_tokens
        seconds += decoded * DECODED_SECONDS * shapes.elements
    return Range(0.5 * seconds, seconds, 3 * seconds)
