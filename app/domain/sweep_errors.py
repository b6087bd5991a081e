"""What can be wrong with a request about sweeps."""

from app.domain.errors import DomainError


class SweepNotFoundError(DomainError):
    """There is no such sweep."""

    code = "sweep_not_found"

    def __init__(self, sweep_id: str) -> None:
        super().__init__(sweep_id)
        self.sweep_id = sweep_id

    def __str__(self) -> str:
        return f"there is no sweep {self.sweep_id[:80]!r}"


class SweepActiveError(DomainError):
    """The sweep must have ended for this."""

    code = "sweep_active"

    def __init__(self, sweep_id: str, status: str) -> None:
        super().__init__(sweep_id, status)
        self.sweep_id, self.status = sweep_id, status

    def __str__(self) -> str:
        return f"sweep {self.sweep_id} is {self.status}; cancel it first, or wait for its end"


class SweepEndedError(DomainError):
    """The sweep must not have ended for this."""

    code = "sweep_ended"

    def __init__(self, sweep_id: str, status: str) -> None:
        super().__init__(sweep_id, status)
        self.sweep_id, self.status = sweep_id, status

    def __str__(self) -> str:
        return f"sweep {self.sweep_id} is {self.status}"


class SweepNotRetryableError(DomainError):
    """There is nothing of the sweep to try again."""

    code = "sweep_not_retryable"

    def __init__(self, sweep_id: str, why: str) -> None:
        super().__init__(sweep_id, why)
        self.sweep_id, self.why = sweep_id, why

    def __str__(self) -> str:
        return f"sweep {self.sweep_id} {self.why}"
