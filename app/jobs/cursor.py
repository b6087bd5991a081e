"""Opaque page cursors: the position of the last job of a page."""

import base64
import binascii
import re
from datetime import UTC, datetime

from app.domain.errors import InvalidCursorError

MAX_LENGTH = 200
ID = re.compile(r"[a-z]{3}_[0-9a-f]{32}")


def encode(created_at: datetime, job_id: str) -> str:
    """Make a cursor."""
    return base64.urlsafe_b64encode(f"{created_at.isoformat()}|{job_id}".encode()).decode()


def decode(cursor: str) -> tuple[datetime, str]:
    """Read a cursor.

    Raises:
        InvalidCursorError: it is not one of ours.
    """
    if len(cursor) > MAX_LENGTH:
        raise InvalidCursorError
    try:
        moment, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().split("|")
        created_at = datetime.fromisoformat(moment)
        position = created_at.astimezone(UTC)
    except (ValueError, OverflowError, binascii.Error):
        raise InvalidCursorError from None
    if created_at.tzinfo is None or not ID.fullmatch(job_id):
        raise InvalidCursorError
    return position, job_id
