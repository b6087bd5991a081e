"""Parameters of the routes for jobs, with what the API's document says about them."""

from typing import Annotated

from fastapi import Header, Path, Query

from app.http import forms

JobId = Annotated[str, Path(description="A job's `id`.")]
FilePath = Annotated[str, Path(description="A `path` of the artifact's list.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Entries of a page at most.")]
LongLimit = Annotated[int, Query(ge=1, le=1000, description="Entries of a page at most.")]
After = Annotated[
    int, Query(ge=0, le=2**31 - 1, description="Only entries behind this one; a page's `next_after`.")
]  # fmt: skip
Cursor = Annotated[str | None, Query(description="Where the page before ended; its `next_cursor`.")]
Model = Annotated[
    str | None, Query(max_length=256, description="Only jobs of this `repo_id` or local folder.")
]
OfSweep = Annotated[
    str | None, Query(alias="sweep", max_length=64, description="Only jobs of this sweep.")
]
Prefer = Annotated[
    str,
    Header(max_length=200, description="`wait=30`: answer on a change, or after so many seconds (RFC 7240)."),
]  # fmt: skip
LastEventId = Annotated[
    int | None,
    Header(ge=0, le=2**31 - 1, description="For streams: go on behind this event. Browsers send it by themselves."),
]  # fmt: skip
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=255, pattern=forms.VISIBLE.pattern,
        description="Any text of the client's own, a UUID for instance. The same request with the same key within "
        "48 hours makes no second job; another request with it is refused.",
    ),
]  # fmt: skip
