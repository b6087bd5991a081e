"""What can go wrong between us and the Hub.

SpqError
├── HubError             the request is wrong and will stay wrong
└── HubUnavailableError  the Hub did not answer; trying again may help
"""

from spq_core.errors import SpqError


class HubError(SpqError):
    """The Hub refused, and would refuse again."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class HubUnavailableError(SpqError):
    """The Hub did not answer, or asked to come back later. The only error here worth a retry."""

    code = "hub_unavailable"
