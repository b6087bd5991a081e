"""What a whole run found: an artifact, and its figures or why there are none."""

from dataclasses import asdict, dataclass
from typing import Any

from spq_core.errors import SpqError
from spq_core.evaluation.gates import JudgedGate, check_gates, judged_gates
from spq_core.evaluation.measure import Measurement
from spq_core.evaluation.summary import Row
from spq_core.recipe.document import parse_recipe
from spq_core.report import CompressionReport
from spq_core.workflow.finished import FinishedRun
from spq_core.workflow.load_gate import LoadCheck

SOURCE, TUNED, INT8, RESULT = "source", "source, tuned", "int8", "result"


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a finished artifact has no figures."""

    code: str
    message: str


NOT_YET = Missing("not_measured", "it was not measured")


class UnmeasuredError(SpqError):
    """A recipe's gates cannot be judged, as measuring failed. The artifact is finished, and kept."""

    code = "evaluation_failed"

    def __init__(self, missing: Missing) -> None:
        super().__init__(missing)
        self.missing = missing

    def __str__(self) -> str:
        return (
            f"the artifact is finished and kept, but its gates cannot be judged without figures: "
            f"{self.missing.message}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Everything a run found."""

    report: CompressionReport
    measurement: Measurement | None
    """None where measuring failed; `missing` says why."""
    rows: tuple[Row, ...]
    """Source, plain INT8 and the result, in this order; plain INT8 once when it is the result. Behind
    the source, where the recipe recovers by training, the source trained in the same way."""
    load_check: LoadCheck
    """How the artifact fared in a fresh process."""
    beaten_by_int8: bool
    """Plain INT8 is at most as large and at least as good."""
    missing: Missing | None = None
    estimate: dict[str, Any] | None = None
    """What the headers alone let expect; None where they do not say enough."""
    seconds: float = 0.0
    """From the preflight to the last figure."""
    gpu_peak_bytes: int | None = None
    """None where no GPU was used."""

    def check_gates(self) -> None:
        """Compare the result with its recipe's limits.

        Raises:
            QualityGateError: naming the figure, its value and the limit.
            UnmeasuredError: there is a limit and no figure.
        """
        gates = parse_recipe(self.report.recipe).gates
        if self.measurement is not None:
            check_gates(gates, self.measurement, RESULT)
        elif self.missing is not None and gates.need_measurement:
            raise UnmeasuredError(self.missing)

    def gates(self) -> tuple[JudgedGate, ...]:
        """The recipe's limits, and what was measured."""
        return judged_gates(parse_recipe(self.report.recipe).gates, self.measurement, RESULT)

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        report = asdict(self.report) | {
            "ratio_to_source": self.report.ratio_to_source,
            "ratio_to_fp32": self.report.ratio_to_fp32,
        }
        return {
            "compression": report,
            "evaluation": None if self.measurement is None else asdict(self.measurement),
            "missing": None if self.missing is None else asdict(self.missing),
            "rows": [row.document() for row in self.rows],
            "load_check": asdict(self.load_check),
            "beaten_by_int8": self.beaten_by_int8,
            "gates": [gate.document() for gate in self.gates()],
            "estimate": self.estimate,
            "measured": self.measured(),
        }

    def measured(self) -> dict[str, float]:
        """The figures of `estimate`, as they turned out."""
        found: dict[str, float] = {
            "artifact_bytes": self.report.artifact_bytes,
            "compression_peak_bytes": self.report.peak_rss_bytes,
            "peak_bytes": self.report.peak_rss_bytes,
            "seconds": round(self.seconds, 1),
        }
        if self.gpu_peak_bytes is not None:
            found["gpu_peak_bytes"] = self.gpu_peak_bytes
        if self.measurement is not None:
            evaluated = self.measurement.peak_rss_bytes
            resident = self.measurement.models[RESULT].load.resident_bytes
            found |= {} if resident is None else {"resident_bytes": resident}
            found |= {
                "evaluation_peak_bytes": evaluated,
                "peak_bytes": max(self.report.peak_rss_bytes, evaluated),
            }
        return found


def unmeasured(finished: FinishedRun, missing: Missing) -> RunResult:
    """The result of a run that has no figures, or none yet."""
    if finished.load_check is None:
        raise RuntimeError("an artifact that was never loaded is not finished")
    return RunResult(
        report=finished.report, measurement=None, rows=(), load_check=finished.load_check,
        beaten_by_int8=False, missing=missing,
    )  # fmt: skip
