"""What can go wrong between us and the Hub.

SpqError
├── HubError             the request is wrong and will stay wrong
└── HubUnavailableError  the Hub did not answer; trying again may help
"""

from spq_core.errors import CodedError, SpqError


class HubError(CodedError):
    """The Hub refused, and would refuse again."""


class HubUnavailableError(SpqError):
    """The Hub did not answer, or asked to come back later. The only error here worth a retry."""

    code = "hub_unavailable"
