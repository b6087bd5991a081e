"""Errors of an object store, in words that may be told to anyone."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError

from app.domain.errors import StoreAwayError
from app.telemetry import log

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_USER = re.compile(r"//[^/@\s]*@")
"""A name and password in an address."""


@contextmanager
def asked() -> Iterator[None]:
    """Errors of the store as ours; FileNotFoundError is Python's own.

    Raises:
        StoreAwayError: it does not answer, or refuses.
    """
    try:
        yield
    except BaseError as error:
        text = str(error)
        log.warning("artifact_store_error", error=_USER.sub("//", text.splitlines()[0])[:300])
        raise StoreAwayError(_kind(text)) from None


def _kind(text: str) -> str:
    """What may be told to tenants of an error: no address, no name of a bucket or a key."""
    status, code = _STATUS.search(text), _CODE.search(text)
    if status is None and code is None:
        return "no answer"
    return " ".join([*([f"HTTP {status[1]}"] if status else []), *([code[1]] if code else [])])
