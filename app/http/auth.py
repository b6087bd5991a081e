"""Who a request speaks for, as FastAPI dependencies: by a bearer key, or by the session of a browser.

Dependencies that do not wait are coroutines: FastAPI hands the others to threads, at a price.
"""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.db.browser_sessions import session_principal
from app.db.keys import Principal, find_principal
from app.db.session import Database
from app.domain.errors import AuthenticationError, PermissionDeniedError
from app.domain.session_errors import CrossSiteRequestError

COOKIE, SECURE_COOKIE = "spq_session", "__Host-spq_session"
CSRF_HEADER = "x-spq-csrf"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_bearer = HTTPBearer(auto_error=False, description="An API key, spq_…")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def database_of(request: Request) -> Database:
    """The process's database."""
    database: Database = request.app.state.database
    return database


def session_secret(request: Request) -> str | None:
    """What the browser's cookie holds."""
    # Over https only the cookie that no other host of the domain can set.
    return request.cookies.get(SECURE_COOKIE if request.url.scheme == "https" else COOKIE)


def require_own_page(request: Request) -> None:
    """Refuse a change that another site's page could have made a browser ask for.

    Such a page can send neither the header nor JSON without being allowed to first, and browsers tell where a request
    comes from.

    Raises:
        CrossSiteRequestError: naming what is missing.
    """
    headers = request.headers
    if headers.get(CSRF_HEADER) != "1":
        raise CrossSiteRequestError("it lacks the header X-Spq-Csrf: 1")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise CrossSiteRequestError("its Content-Type is not application/json")
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site != "same-origin":
            raise CrossSiteRequestError(f"the browser says that it is {site[:20]}")
    elif _host(headers.get("origin", "")) != headers.get("host", ""):
        raise CrossSiteRequestError("its Origin is not this service")


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def authenticate(request: Request, credentials: Credentials) -> Principal:
    """Return whom the bearer key speaks for, or without one the session.

    Raises:
        AuthenticationError: there is neither, or it is unknown, expired or revoked.
        CrossSiteRequestError: a session asks for a change, and nothing shows that a page of ours does.
    """
    if credentials is not None:
        with database_of(request).look() as connection:
            principal = find_principal(connection, credentials.credentials)
    else:
        secret = session_secret(request)
        if secret is None:
            raise AuthenticationError
        if request.method not in SAFE_METHODS:
            require_own_page(request)
        with database_of(request).read() as session:
            principal = session_principal(session, secret)
    if principal is None:
        raise AuthenticationError
    return principal


def _with_scope(principal: Principal, scope: str) -> Principal:
    if scope not in principal.scopes:
        raise PermissionDeniedError(scope)
    return principal


async def reader(principal: Annotated[Principal, Depends(authenticate)]) -> Principal:
    """A principal that may read jobs."""
    return _with_scope(principal, "jobs:read")


async def writer(principal: Annotated[Principal, Depends(authenticate)]) -> Principal:
    """A principal that may submit and change jobs."""
    return _with_scope(principal, "jobs:write")


Reader = Annotated[Principal, Depends(reader)]
Writer = Annotated[Principal, Depends(writer)]
