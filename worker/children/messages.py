"""What passes between a supervisor and its children: one JSON document a line, a class for each kind.

A runner opens untrusted models, so what it says is validated like any input from outside: a line that is no
message of its program is text for the job's log.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from spq_core.models.reading import AS_IT_IS, Reading
from spq_core.progress import PhaseKind

Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(max_length=300)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0)] | None


class Frozen(BaseModel):
    """Base of specifications and messages."""

    model_config = ConfigDict(frozen=True)


# To a child, as the first line of its input


class Output(Frozen):
    """A repository to publish to."""

    repo_id: Name
    private: bool


class FetchSpec(Frozen):
    """What the fetcher brings here."""

    endpoint: str | None
    token: Annotated[str | None, Field(repr=False)]
    job_id: str
    repo_id: str | None
    revision: str
    recipe: dict[str, Any]
    model_folder: str
    output: Output | None
    texts: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    text_folder: str
    """Of questions, too."""
    max_bytes: int
    reading: Reading = AS_IT_IS


class Source(Frozen):
    """A model, and where it is."""

    folder: str
    name: str
    revision: str | None = None
    license: str | None = None
    reading: Reading = AS_IT_IS


class FinishedArtifact(Frozen):
    """What is known of an artifact that lies where a run would write its own."""

    compression: dict[str, Any]
    """Its report, as the job that made it shows it."""
    load_check: dict[str, Any]


class RunSpec(Frozen):
    """What the runner compresses and measures."""

    source: Source
    recipe: dict[str, Any]
    evaluation: dict[str, Any]
    text_folders: tuple[str, ...]
    out: str
    scratch: str
    threads: int | None
    device: str
    figures: str | None = None
    """A folder with figures of the source from earlier jobs."""
    leave: str | None = None
    """Where to leave those of this one."""
    job_id: str = ""
    finished: FinishedArtifact | None = None
    """Of another job's artifact, which is only measured."""


class PublishSpec(Frozen):
    """What the publisher puts where."""

    endpoint: str | None
    token: Annotated[str | None, Field(repr=False)]
    repo_id: str
    private: bool
    job_id: str
    folder: str
    title: str


# From a child


class Message(Frozen):
    """Base of everything a child says."""

    type: str


class Phase(Frozen):
    """What a run is at; see `spq_core.progress.Phase`."""

    kind: PhaseKind
    id: Name
    title: Name


class Progressed(Message):
    """How far the present phase is."""

    type: Literal["progress"] = "progress"
    phase: Phase
    done: Count
    total: Count
    unit: Name
    message: Text = ""
    phase_left: Seconds = None
    """Of the phase, in seconds."""
    run_left: Seconds = None


class Logged(Message):
    """A line for the job's log."""

    type: Literal["log"] = "log"
    text: Text


class Failed(Message):
    """How a child ended that did not succeed."""

    type: Literal["error"] = "error"
    code: Name
    message: Text
    retryable: bool


class HubAnswered(Message):
    """How often requests to the Hub were answered with what."""

    type: Literal["hub"] = "hub"
    answers: tuple[tuple[Name, Name, Count], ...]
    """Operation, status, times."""


class Fetched(Message):
    """A model is here."""

    type: Literal["fetched"] = "fetched"
    commit: Name
    license: Name | None


class File(Frozen):
    """One file of an artifact."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


Files = dict[str, File]


class Finished(Message):
    """The artifact is complete; it has not been measured yet."""

    type: Literal["finished"] = "finished"
    document: dict[str, Any]
    files: Files


class Resulted(Message):
    """The artifact is complete and measured."""

    type: Literal["result"] = "result"
    document: dict[str, Any]
    files: Files


class Kept(Message):
    """An artifact that failed its load gate, and that the recipe asks to keep."""

    type: Literal["kept"] = "kept"
    files: Files


class Ready(Message):
    """Everything is uploaded; may it be committed?"""

    type: Literal["ready"] = "ready"


class Published(Message):
    """The artifact is on the Hub."""

    type: Literal["published"] = "published"
    repo_id: Name
    commit: Name
    url: Text


OF_ALL = (Progressed, Logged, Failed)
OF_FETCHER = (*OF_ALL, HubAnswered, Fetched)
OF_RUNNER = (*OF_ALL, Finished, Resulted, Kept)
OF_PUBLISHER = (*OF_ALL, HubAnswered, Ready, Published)
