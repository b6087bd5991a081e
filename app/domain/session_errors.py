"""What can be wrong with a browser's session."""

from app.domain.errors import DomainError


class CrossSiteRequestError(DomainError):
    """A browser asks for a change, and nothing shows that a page of this service does."""

    code = "cross_site_request"

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"a change asked for with a browser's session must come from this service's own page; {self.why}"


class LoginRefusedError(DomainError):
    """Neither a live key nor a code that can still be used."""

    code = "login_refused"

    def __str__(self) -> str:
        return (
            "this key or link does not work (any more): a link works once, within ten minutes; `spq open` makes a new "
            "one, and `spq keys list` tells which keys live"
        )
