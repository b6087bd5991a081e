"""What an attempt's children said of their results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.db.attempts import FinishedFile
from worker.attempt.results import finished_files, job_result, layer_rows, metric_rows
from worker.children.messages import File as ArtifactFile
from worker.children.messages import Finished, Kept, Message, Published, Resulted


@dataclass(slots=True)
class Reported:
    """Of one attempt."""

    document: dict[str, Any] = field(default_factory=dict)
    files: dict[str, ArtifactFile] = field(default_factory=dict)
    finished: Finished | None = None
    """What the run said of an artifact that is complete, before it measured it."""
    published: dict[str, Any] | None = None

    def take(self, message: Message) -> None:
        """Take in what a child came to."""
        match message:
            case Finished():
                self.finished = message
            case Resulted():
                self.document, self.files = message.document, message.files
            case Kept():
                self.document, self.files = {}, message.files
            case Published():
                self.published = message.model_dump(exclude={"type"})
            case _:
                pass

    @property
    def is_unmeasured(self) -> bool:
        """Whether the run finished its artifact, and has not said what it is worth."""
        return self.finished is not None and not self.document

    def go_on_unmeasured(self, missing: Mapping[str, str]) -> None:
        """Let what was said of the finished artifact stand for a result."""
        if self.finished is not None:
            self.files = self.finished.files
            self.document = {**self.finished.document, "missing": dict(missing)}

    def rows(self) -> dict[str, Any]:
        """Layers, figures and files for the database."""
        return {
            "layers": layer_rows(self.document),
            "metrics": metric_rows(self.document),
            "files": self.file_rows(),
        }

    def file_rows(self) -> list[FinishedFile]:
        """Files for the database."""
        return finished_files(self.files)

    def result(self) -> dict[str, Any] | None:
        """What the job shows; None where the run never got as far as an artifact."""
        return job_result(self.document, self.published) if self.document else None
