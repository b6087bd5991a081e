"""An artifact that is finished though measuring it failed: when that is a result, and what it lacks."""

from collections.abc import Mapping
from typing import Any

from app.db.attempts import Claim
from spq_core.evaluation.settings import Gates
from worker.errors import ChildFailedError, ChildRetryError, failed
from worker.sandbox.usage import EXCESS_CODES

UNMEASURED = "evaluation_failed"
"""Gates cannot be judged, as there are no figures; the artifact stays."""


def ends_unmeasured(why: ChildFailedError | ChildRetryError, claim: Claim) -> bool:
    """Whether nobody will measure this job's artifact any more, and it is a result without figures.

    So it is when the run took too much, and when it died and no attempt is left. A client's time limit, and a
    gate, end the job.
    """
    if isinstance(why, ChildRetryError):
        return claim.attempt >= claim.max_attempts
    return why.error["code"] in EXCESS_CODES


def missing_figures(why: ChildFailedError | ChildRetryError) -> dict[str, str]:
    """Why there are none."""
    if isinstance(why, ChildRetryError):
        return {"code": why.reason, "message": f"measuring failed: {why.detail}"}
    return {
        "code": str(why.error["code"]),
        "message": f"measuring failed: {why.error['message']}",
    }


def require_no_gates(recipe: Mapping[str, Any], missing: Mapping[str, str]) -> None:
    """Refuse a result without figures where the recipe wants them judged.

    Raises:
        ChildFailedError: it has gates.
    """
    if Gates.model_validate(recipe["gates"]).need_measurement:
        raise failed(
            UNMEASURED,
            "the artifact is finished and kept, but its gates cannot be judged without figures: "
            f"{missing['message']}",
        )
