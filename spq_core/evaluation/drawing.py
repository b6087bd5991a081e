"""What pictures need: matplotlib, and a file it can write. Free of torch."""

from pathlib import Path

from spq_core.errors import EvaluationError

SUFFIXES = (".png", ".svg", ".pdf")
LEAST_KL = 1e-5


def require_drawable(file: Path) -> None:
    """Find out before hours of measuring that a figure cannot be written.

    Raises:
        EvaluationError: matplotlib is missing, or the file's kind is none it writes.
    """
    if file.suffix not in SUFFIXES:
        raise EvaluationError(f"{file.name}: figures are written as {', '.join(SUFFIXES)}")
    if not file.parent.is_dir():
        raise EvaluationError(f"{file.parent} is not a folder")
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra of the package
    except ModuleNotFoundError:
        raise EvaluationError(
            "a figure needs matplotlib: pip install -e '.[figures]' in the checkout"
        ) from None
    mpl.use("agg")
