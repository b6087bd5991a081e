"""Labels in the query of a list."""

from collections.abc import Mapping

from app.domain.errors import TooManyLabelsError
from app.jobs.schemas import MAX_LABELS

PREFIX = "label."


def wanted_labels(query: Mapping[str, str]) -> dict[str, str]:
    """The `label.NAME=VALUE` of a query.

    Raises:
        ManyLabelsError: no job has so many.
    """
    found = {
        name.removeprefix(PREFIX): value for name, value in query.items() if name.startswith(PREFIX)
    }
    if len(found) > MAX_LABELS:
        raise TooManyLabelsError(len(found), MAX_LABELS)
    return found
