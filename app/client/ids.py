"""Jobs as people name them: whole ids, their ends, and the newest."""

import re
from typing import Any

from app.client.http import ApiError, Client

WHOLE = 36
LEAST = 4
NEWEST = "@last"
ACTIVE = "queued,running,canceling"


def job_id_of(client: Client, given: str) -> str:
    """The id that is meant: itself, part of one job's only, or `@last`.

    Raises:
        ApiError: no job is like that, or several are.
    """
    if len(given) == WHOLE and given.startswith("job_"):
        return given
    if given == NEWEST:
        return _first(client.call("GET", "/jobs", view="row", limit=1)["data"], "you have no jobs")
    if len(given) < LEAST:
        raise ApiError(
            "job_not_found",
            f"{given!r} is too short; give an id, {LEAST} or more of its last letters, or {NEWEST}",
        )
    if not re.fullmatch("[a-z0-9_]+", given):
        raise ApiError("job_not_found", f"{given!r} is no part of an id; spq jobs list shows them")
    matching = client.call("GET", "/jobs", view="row", limit=5, id_part=given)["data"]
    if len(matching) > 1:
        told = ", ".join(row["id"] for row in matching)
        raise ApiError("job_not_found", f"several jobs have {given!r} in their ids: {told}")
    return _first(matching, f"no job has {given!r} in its id; spq jobs list shows them")


def sweep_id_of(client: Client, given: str) -> str:
    """The sweep that is meant, among the newest hundred: as for jobs.

    Raises:
        ApiError: no sweep is like that, or several are.
    """
    if len(given) == WHOLE and given.startswith("swp_"):
        return given
    known = [str(one["id"]) for one in client.call("GET", "/sweeps", limit=100)["data"]]
    matching = known[:1] if given == NEWEST else [one for one in known if given in one]
    if len(given) < LEAST or not matching:
        raise ApiError(
            "sweep_not_found", f"no sweep has {given!r} in its id; spq sweeps list shows them"
        )
    if len(matching) > 1:
        raise ApiError(
            "sweep_not_found", f"several sweeps have {given!r} in their ids: {', '.join(matching)}"
        )
    return matching[0]


def newest_active(client: Client) -> str:
    """The job that was submitted last of those that have not ended.

    Raises:
        ApiError: there is none.
    """
    found = client.call("GET", "/jobs", view="row", limit=1, status=ACTIVE)["data"]
    return _first(found, "no job is on its way; name one")


def _first(rows: list[dict[str, Any]], otherwise: str) -> str:
    if not rows:
        raise ApiError("job_not_found", otherwise)
    return str(rows[0]["id"])
