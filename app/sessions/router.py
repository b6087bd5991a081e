"""Routes that sign a browser in and out."""

import hashlib
from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Request, Response, status
from pydantic import Field, SecretStr, model_validator

from app.db.browser_sessions import (
    CODE_SECONDS,
    SESSION_SECONDS,
    begin_session,
    end_session,
    key_principal,
    make_code,
    redeem_code,
)
from app.db.keys import find_principal
from app.db.quotas import count_request
from app.db.session import now
from app.domain.errors import AuthenticationError, RateLimitedError
from app.domain.session_errors import CrossSiteRequestError, LoginRefusedError
from app.http.auth import (
    COOKIE,
    SECURE_COOKIE,
    Reader,
    database_of,
    require_own_page,
    session_secret,
)
from app.http.problems import documented
from app.jobs.requests import PlainBody, RequestBody

router = APIRouter(prefix="/session", tags=["sessions"])
LOGINS_PER_MINUTE = 20
"""From one address."""


class Login(PlainBody):
    """What a browser shows."""

    key: Annotated[SecretStr, Field(min_length=1, max_length=200)] | None = None
    """An API key."""
    code: Annotated[SecretStr, Field(min_length=1, max_length=200)] | None = None
    """Of a link that `spq serve` or `spq open` made."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.key is None) == (self.code is None):
            raise ValueError("give either key or code")
        return self


class LoginLink(RequestBody):
    """A link that signs a browser in once."""

    code: str
    path: str
    """Behind the service's address; the code is in the fragment, which browsers neither send nor log."""
    expires_in_seconds: int


class SessionState(RequestBody):
    """Whether a browser is signed in."""

    signed_in: bool
    tenant: str | None = None
    scopes: tuple[str, ...] = ()
    at: datetime


@router.post(
    "",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=documented(LoginRefusedError, CrossSiteRequestError, RateLimitedError),
)
def sign_in(request: Request, body: Login) -> Response:
    """Begin a session of twelve hours, or until its key ends; the cookie is out of reach for scripts."""
    require_own_page(request)
    database = database_of(request)
    count_request(database, _address(request), LOGINS_PER_MINUTE)
    with database.write() as session:
        if body.key is not None:
            principal = find_principal(session, body.key.get_secret_value())
        else:
            code = "" if body.code is None else body.code.get_secret_value()
            key_id = redeem_code(session, code)
            principal = None if key_id is None else key_principal(session, key_id)
        secret = None if principal is None else begin_session(session, principal.key_id)
    if secret is None:
        raise LoginRefusedError
    answer = Response(status_code=status.HTTP_204_NO_CONTENT)
    is_secure = request.url.scheme == "https"
    answer.set_cookie(
        SECURE_COOKIE if is_secure else COOKIE, secret, max_age=SESSION_SECONDS, path="/",
        secure=is_secure, httponly=True, samesite="strict",
    )  # fmt: skip
    return answer


@router.get("", response_model=SessionState)
def session_state(request: Request, caller: Reader) -> SessionState:
    """Whom the session, or the key, speaks for."""
    with database_of(request).read() as session:
        moment = now(session)
    return SessionState(
        signed_in=True, tenant=caller.tenant, scopes=tuple(sorted(caller.scopes)), at=moment
    )


@router.delete(
    "", status_code=status.HTTP_204_NO_CONTENT, responses=documented(CrossSiteRequestError)
)
def sign_out(request: Request) -> Response:
    """End the session; one that has ended already is no error."""
    require_own_page(request)
    secret = session_secret(request)
    if secret is not None:
        with database_of(request).write() as session:
            end_session(session, secret)
    answer = Response(status_code=status.HTTP_204_NO_CONTENT)
    answer.headers["Clear-Site-Data"] = '"storage"'
    for name in (COOKIE, SECURE_COOKIE):
        answer.delete_cookie(
            name, path="/", secure=name == SECURE_COOKIE, httponly=True, samesite="strict"
        )
    return answer


@router.post("/codes", response_model=LoginLink, responses=documented(RateLimitedError))
def make_link(request: Request, caller: Reader) -> LoginLink:
    """A link that signs a browser in for whom this key speaks: once, within ten minutes.

    A session makes none: it would go on for longer than it may.
    """
    if "authorization" not in request.headers:
        raise AuthenticationError
    count_request(database_of(request), _address(request), LOGINS_PER_MINUTE)
    with database_of(request).write() as session:
        code = make_code(session, caller.key_id)
    return LoginLink(code=code, path=f"/ui/#code={code}", expires_in_seconds=CODE_SECONDS)


def _address(request: Request) -> str:
    """Of whom to count logins for; as long as a key's id."""
    host = "" if request.client is None else request.client.host
    return f"ip_{hashlib.sha256(host.encode()).hexdigest()[:32]}"
