"""Labels in the query of a list."""

from collections.abc import Mapping

from app.db.jobs import MAX_LABELS
from app.domain.naming_errors import TooManyLabelsError

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
