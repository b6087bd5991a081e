"""What can be wrong with a request, without a word of HTTP.

DomainError
├── JobNotFoundError          no such job, or another tenant's
├── ArtifactNotFoundError     the job has no such file (yet)
├── ArtifactExpiredError      the job's files were removed for their age
├── DamagedArtifactError      a file's content is not the one it is listed with
├── StoreAwayError            the artifact store does not answer
├── JobActiveError            the job must be terminal for this
├── PublishInProgressError    too late to cancel: the commit is being made
├── JobNotMeasurableError     there is no artifact, or it has not ended
├── JobNotRetryableError      only failed and canceled jobs can be tried again
├── IdempotencyKeyReusedError the key came with another request before
├── RequestInProgressError    the first request with this key is being answered
├── QuotaExceededError        the tenant has used up what it may have
├── RateLimitedError          the key asked too often
├── UnsafeWebhookError        a webhook's URL must not be called
├── TokensDisabledError       the same for Hub tokens
├── WebhooksDisabledError     the service has no key to keep secrets with
├── DeliveryNotFoundError     no such webhook message, or another tenant's
├── SecretUnreadableError     a stored secret was sealed with a key that is gone
├── EstimatesBusyError        as many estimates are being made as may be at once
├── TooManyStreamsError       as many event streams are open as may be at once
├── AuthenticationError       no valid key
├── PermissionDeniedError     the key lacks a scope
├── of what a request names     see `naming_errors`
├── those of sweeps            see `sweep_errors`
└── FencedError               an attempt that no longer owns its job tried to write
"""

from datetime import datetime


class DomainError(Exception):
    """Base class; `code` is stable and part of the API."""

    code = "invalid_request"


class JobNotFoundError(DomainError):
    """There is no such job."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"there is no job {self.job_id[:80]!r}"


class ArtifactNotFoundError(DomainError):
    """The job has no such file."""

    code = "artifact_not_found"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"the job has no artifact file {self.path[:200]!r}; it appears when the job has succeeded"


class DamagedArtifactError(DomainError):
    """A file's content is not the one it is listed with."""

    code = "unsafe_artifact"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"the content of {self.path[:200]!r} is not the one it is listed with"


class StoreAwayError(DomainError):
    """The artifact store does not answer, or refuses."""

    code = "artifact_store_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the artifact store does not answer: {self.reason}"


class ArtifactExpiredError(DomainError):
    """The job's files were removed for their age."""

    code = "artifact_expired"

    def __init__(self, at: datetime) -> None:
        super().__init__(at)
        self.at = at

    def __str__(self) -> str:
        return f"the job's artifact was removed from the store at {self.at:%Y-%m-%dT%H:%M:%SZ}, for its age or because its sweep keeps others"


class TokensDisabledError(DomainError):
    """The service has no key to keep Hub tokens with."""

    code = "hub_tokens_disabled"

    def __str__(self) -> str:
        return "hub_token is disabled: the operator has not set SPQ_SECRET_KEYS"


class JobActiveError(DomainError):
    """The job must have ended for this."""

    code = "job_active"

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(job_id, status)
        self.job_id, self.status = job_id, status

    def __str__(self) -> str:
        return f"job {self.job_id} is {self.status}; cancel it first"


class PublishInProgressError(DomainError):
    """Too late to cancel."""

    code = "publish_in_progress"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id} is making its commit on the Hub and will end in moments"


class JobNotRetryableError(DomainError):
    """Only a failed or canceled job can be tried again."""

    code = "job_not_retryable"

    def __init__(self, job_id: str, why: str) -> None:
        super().__init__(job_id, why)
        self.job_id, self.why = job_id, why

    def __str__(self) -> str:
        return f"job {self.job_id} {self.why}; failed and canceled jobs can be tried again, others are submitted anew"


class JobNotMeasurableError(DomainError):
    """There is nothing of the job that could be measured."""

    code = "job_not_measurable"

    def __init__(self, job_id: str, why: str) -> None:
        super().__init__(job_id, why)
        self.job_id, self.why = job_id, why

    def __str__(self) -> str:
        return f"job {self.job_id} {self.why}; a job that has ended, and has its artifact, can be measured"


class IdempotencyKeyReusedError(DomainError):
    """The Idempotency-Key came with another request before."""

    code = "idempotency_key_reused"

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the Idempotency-Key {self.key[:80]!r} came with another request; use a new key for a new request"


class RequestInProgressError(DomainError):
    """The first request with this Idempotency-Key is still being answered."""

    code = "request_in_progress"

    def __str__(self) -> str:
        return "the first request with this Idempotency-Key is still being answered; ask again"


class QuotaExceededError(DomainError):
    """The tenant has as much as it may have."""

    code = "quota_exceeded"

    def __init__(self, policy: str, allowed: int) -> None:
        super().__init__(policy, allowed)
        self.policy, self.allowed = policy, allowed

    def __str__(self) -> str:
        return f"this tenant's quota {self.policy} of {self.allowed:,} is used up"


class RateLimitedError(DomainError):
    """The API key made too many requests in this minute."""

    code = "rate_limited"

    def __init__(self, allowed: int, reset_seconds: int) -> None:
        super().__init__(allowed, reset_seconds)
        self.allowed, self.reset_seconds = allowed, reset_seconds

    def __str__(self) -> str:
        return f"{self.allowed} submissions a minute are allowed; the next one in {self.reset_seconds} s"


class UnsafeWebhookError(DomainError):
    """A webhook's URL is not one this service may call."""

    code = "unsafe_webhook"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the webhook's URL cannot be used: {self.reason}"


class WebhooksDisabledError(DomainError):
    """This service has no key to keep webhook secrets with."""

    code = "webhooks_disabled"

    def __str__(self) -> str:
        return "this service has no SPQ_SECRET_KEYS to keep secrets with, so it takes no webhooks"


class DeliveryNotFoundError(DomainError):
    """There is no such webhook message."""

    code = "delivery_not_found"

    def __init__(self, delivery_id: str) -> None:
        super().__init__(delivery_id)
        self.delivery_id = delivery_id

    def __str__(self) -> str:
        return f"there is no webhook delivery {self.delivery_id[:80]!r}"


class SecretUnreadableError(DomainError):
    """A stored secret was sealed with a key that this service no longer has."""

    code = "secret_unreadable"

    def __str__(self) -> str:
        return "a stored secret was sealed with a key that SPQ_SECRET_KEYS no longer holds"


class EstimatesBusyError(DomainError):
    """As many estimates are being made as may be at once; try again in a few seconds."""

    code = "too_many_requests"

    def __str__(self) -> str:
        return "too many estimates are being made; try again in a few seconds"


class TooManyStreamsError(DomainError):
    """As many clients follow jobs as may at once, or as many with this key."""

    code = "too_many_requests"

    def __str__(self) -> str:
        return "too many event streams are open; close some, or poll with If-None-Match"


class AuthenticationError(DomainError):
    """The request has no valid API key."""

    code = "unauthenticated"

    def __str__(self) -> str:
        return "send a valid API key as 'Authorization: Bearer spq_…' (`spq keys create` makes one), or sign in at /ui"


class PermissionDeniedError(DomainError):
    """The API key lacks a scope."""

    code = "permission_denied"

    def __init__(self, scope: str) -> None:
        super().__init__(scope)
        self.scope = scope

    def __str__(self) -> str:
        return f"this API key lacks the scope {self.scope!r}"


class FencedError(DomainError):
    """This attempt no longer owns the job: it ended, or another attempt has it."""

    code = "fenced"

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(job_id, attempt)
        self.job_id, self.attempt = job_id, attempt

    def __str__(self) -> str:
        return f"attempt {self.attempt} no longer owns job {self.job_id}"
