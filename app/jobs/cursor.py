"""Opaque page cursors: the position of the last job of a page."""

import base64
import binascii
from datetime import UTC, datetime

from app.db.jobs import JOB_ID
from app.domain.errors import InvalidCursorError

MAX_LENGTH = 200


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
    if created_at.tzinfo is None or not JOB_ID.fullmatch(job_id):
        raise InvalidCursorError
    return position, job_id
