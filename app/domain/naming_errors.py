"""What a request names that there is not, or that a list cannot be asked for by."""

from collections.abc import Sequence
from difflib import get_close_matches

from app.domain.errors import DomainError


class ModelNotAllowedError(DomainError):
    """A local model is not in an allowed folder."""

    code = "model_not_found"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"there is no local model {self.path[:200]!r} in the folders this service may read "
            "(SPQ_MODEL_DIRS, spq serve --models); GET /models (spq models) lists those there are"
        )


class UnknownDatasetError(DomainError):
    """A dataset is not one this service knows."""

    code = "unknown_dataset"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"unknown dataset {self.name[:80]!r}; GET /capabilities (spq datasets) lists those known, and others "
            "can be put into SPQ_DATA_DIR as <name>-test.txt and <name>-valid.txt"
        )


class UnknownTaskError(DomainError):
    """There are no questions of a task."""

    code = "unknown_task"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class UnknownFilterError(DomainError):
    """A list is asked for by something that it does not know; left out, it would show too much."""

    code = "unknown_filter"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(name)
        self.name, self.known = name, known

    def __str__(self) -> str:
        near = get_close_matches(self.name, self.known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"there is no parameter {self.name!r}{meant}, only {', '.join(self.known)} and label.NAME"


class InvalidCursorError(DomainError):
    """The page cursor is not one of ours."""

    code = "invalid_cursor"

    def __str__(self) -> str:
        return "the page cursor is malformed; use next_cursor of the previous page unchanged"


class TooManyLabelsError(DomainError):
    """A list asks for more labels than a job can have."""

    code = "invalid_request"

    def __init__(self, given: int, allowed: int) -> None:
        super().__init__(given)
        self.given, self.allowed = given, allowed

    def __str__(self) -> str:
        return f"{self.given} labels are asked for; a job has at most {self.allowed}"
