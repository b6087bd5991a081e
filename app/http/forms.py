"""Forms that texts of requests have: as a pattern for programs, and in words for whoever missed it."""

from typing import NamedTuple

from app.db.job_lists import COLUMNS
from app.domain.job_status import JobStatus
from spq_core.evaluation.settings import TASK_NAME
from spq_core.models import reading


class Form(NamedTuple):
    """A regular expression, and what it says."""

    pattern: str
    words: str


_STATUS = "|".join(JobStatus)
REPO_ID = Form(
    r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.\-]{0,95})?$",
    "must be owner/name as on the Hub: letters, digits, '.', '_' and '-', beginning with a letter or digit, with one '/' at most",
)
LABEL = Form(r"^[A-Za-z0-9_.\-]{1,63}$", "must be 1 to 63 letters, digits, '.', '_' or '-'")
REVISION = Form(r"^[\w./\-]{1,128}$", "must be a branch, tag or commit")
FOLDER = Form(
    r"^[A-Za-z0-9][\w.\-]{0,127}$",
    "must be the name of a folder in SPQ_MODEL_DIRS (spq serve --models), without '/'",
)
SUBFOLDER = Form(reading.SUBFOLDER, reading.SUBFOLDER_WORDS)
GGUF_FILE = Form(reading.FILE, reading.FILE_WORDS)
VISIBLE = Form(r"^[\x21-\x7e]+$", "must be visible ASCII characters without spaces")
STATUSES = Form(
    rf"^({_STATUS})(,({_STATUS})){{0,{len(JobStatus) - 1}}}$",
    f"must be one of {', '.join(JobStatus)}, or several separated by commas",
)
IDS = Form(r"^[A-Za-z0-9_]+(,[A-Za-z0-9_]+)*$", "must be ids separated by commas")
ID_PART = Form("^[a-z0-9_]{1,36}$", "must be a part of an id: small letters, digits and '_'")
SORT = Form(
    rf"^-?({'|'.join(COLUMNS)})$",
    f"must be one of {', '.join(COLUMNS)}, with '-' before it for the largest first",
)
TASK = Form(TASK_NAME, "must be the name of a task: letters, digits, '_' and '-'")
WORDS = {
    one.pattern: one.words
    for one in (
        REPO_ID,
        LABEL,
        REVISION,
        FOLDER,
        SUBFOLDER,
        GGUF_FILE,
        VISIBLE,
        STATUSES,
        IDS,
        ID_PART,
        SORT,
        TASK,
    )
}
