"""Who a request speaks for, as FastAPI dependencies.

Dependencies that do not wait are coroutines: FastAPI hands the others to threads, at a price.
"""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.db.keys import Principal, find_principal
from app.db.session import Database
from app.domain.errors import AuthenticationError, PermissionDeniedError

_bearer = HTTPBearer(auto_error=False, description="An API key, spq_…")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def database_of(request: Request) -> Database:
    """The process's database."""
    database: Database = request.app.state.database
    return database


def authenticate(request: Request, credentials: Credentials) -> Principal:
    """Return whom the bearer key speaks for.

    Raises:
        AuthenticationError: there is no key, or it is unknown, expired or revoked.
    """
    if credentials is None:
        raise AuthenticationError
    with database_of(request).look() as connection:
        principal = find_principal(connection, credentials.credentials)
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
