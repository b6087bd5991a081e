"""Which of the four ways of rounding a recipe asks for."""

from spq_core.methods.quantization.block_stage import BlockStage
from spq_core.methods.quantization.entropy_stage import EntropyStage
from spq_core.methods.quantization.grid_stage import GridStage
from spq_core.methods.quantization.int8_stage import Int8Stage
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.methods.stage import Stage, StageContext


def make_stage(settings: QuantizeSettings, context: StageContext) -> Stage:
    """By entropy where there is a budget, else in ggml's blocks or onto grids, plainly to 8 bits where that is all."""
    skeleton, budget = context.skeleton, context.plan.budget
    parts = (
        settings, skeleton.family, skeleton.head_path, skeleton.embedding_path, context.dtype,
    )  # fmt: skip
    if budget is not None:
        context.cuts.tell(budget.keep_rows)
        return EntropyStage(*parts, budget)
    widths = dict(context.plan.structure.widths)
    if settings.types:
        return BlockStage(*parts, context.profile, widths)
    if settings.is_plain and "int8" in context.profile.forms:
        return Int8Stage(*parts)
    return GridStage(*parts, context.profile, widths)
