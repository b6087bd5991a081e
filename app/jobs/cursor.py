"""Opaque page cursors: the position of the last entry of a page in the order of its list."""

import base64
import binascii
import json
import math
import re
from datetime import UTC, datetime
from typing import Any

from app.domain.naming_errors import InvalidCursorError

MAX_LENGTH = 600
ID = re.compile(r"[a-z]{3}_[0-9a-f]{32}")


def encode(value: datetime | str | float | None, entry_id: str, order: str = "") -> str:
    """Make a cursor.

    Args:
        value: what the list is sorted by.
        order: names the order; a cursor serves lists in its own order only.
    """
    told = value.isoformat() if isinstance(value, datetime) else value
    text = json.dumps([order, told, entry_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode(cursor: str, kind: type[Any] = datetime, order: str = "") -> tuple[Any, str]:
    """Read a cursor: a value of a kind, or None, and an id.

    Raises:
        InvalidCursorError: it is not one of ours, or of another order.
    """
    if len(cursor) > MAX_LENGTH:
        raise InvalidCursorError
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor.encode()).decode())
        known_order, value, entry_id = found
        value = None if value is None else _value(value, kind)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise InvalidCursorError from None
    is_id = isinstance(entry_id, str) and ID.fullmatch(entry_id)
    if known_order != order or not is_id or (value is None and not order):
        raise InvalidCursorError
    return value, entry_id


def _value(value: Any, kind: type[Any]) -> Any:
    if kind is datetime:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError(value)
        return moment.astimezone(UTC)
    if kind is float:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(value)
        return number
    if not isinstance(value, str) or "\0" in value:
        raise TypeError(value)
    return value
