"""Put an artifact on the Hub in one commit, at most once per job."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import ModelInfo

from spq_core.artifact.manifest import BESIDE_FOLDER, MANIFEST_FILE, artifact_files
from spq_core.hub.client import translated_errors
from spq_core.hub.errors import HubError
from spq_core.models.model_folder import is_side_file

TRAILER = "Spq-Job-Id"
HARMLESS_FILES = frozenset({".gitattributes", "README.md"})
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Where the artifact is."""

    repo_id: str
    commit: str
    url: str


@dataclass(frozen=True, slots=True)
class Publisher:
    """Uploads in two steps, so that the caller can make sure in between that it still may commit."""

    api: HfApi
    repo_id: str
    job_id: str

    def existing(self) -> Publication | None:
        """The commit this job made earlier, if it did: an attempt may have died after it."""
        with translated_errors(self.repo_id):
            if not self.api.repo_exists(self.repo_id):
                return None
            for commit in self.api.list_repo_commits(self.repo_id):
                if f"{TRAILER}: {self.job_id}" in f"{commit.title}\n{commit.message}":
                    return self._publication(commit.commit_id)
        return None

    def check(self, *, private: bool) -> None:
        """Find out whether this job could publish.

        Raises:
            HubError: the repository holds something else, or is public though private was asked for.
        """
        if self.existing() is not None:
            return
        with translated_errors(self.repo_id):
            if self.api.repo_exists(self.repo_id):
                self._refuse_unsuitable(self.api.model_info(self.repo_id), private=private)

    def upload(self, folder: Path, *, private: bool) -> "Prepared":
        """Create the repository if needed and upload the large files; nothing is visible yet.

        Raises:
            HubError: the repository holds something else, or is public though private was asked for.
        """
        files = artifact_files(folder)
        with translated_errors(self.repo_id):
            self.api.create_repo(self.repo_id, private=private, exist_ok=True)
            info = self.api.model_info(self.repo_id)
            present = self._refuse_unsuitable(info, private=private)
            additions = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
                for name, path in files.items()
                if path.is_file() and not path.is_symlink()
            ]
            self.api.preupload_lfs_files(self.repo_id, additions, free_memory=False)
        stale = [name for name in present if name not in files and _is_ours(name)]
        deletions = [CommitOperationDelete(path_in_repo=name) for name in stale]
        return Prepared(str(info.sha), [*additions, *deletions])

    def _refuse_unsuitable(self, info: ModelInfo, *, private: bool) -> list[str]:
        """Names of what an earlier artifact left in the repository.

        Weights left beside ours would be loaded instead of ours, so a repository that holds a model
        which is not an artifact of this service is not written to.
        """
        if private and not info.private:
            raise HubError(
                "output_not_private",
                f"{self.repo_id} exists and is public; set output.private to false, or name another",
            )
        names = {one.rfilename for one in info.siblings or []}
        others = sorted(names - HARMLESS_FILES)
        if others and MANIFEST_FILE not in names:
            raise HubError(
                "output_not_empty",
                f"{self.repo_id} holds {', '.join(others[:SHOWN])}{' …' if len(others) > SHOWN else ''} "
                "and no artifact of this service; name a new repository",
            )
        return others

    def commit(self, prepared: "Prepared", title: str) -> Publication:
        """Make the one commit, on top of the head seen before the upload.

        Raises:
            HubError: the repository changed meanwhile, or refuses.
        """
        with translated_errors(self.repo_id):
            made = self.api.create_commit(
                self.repo_id,
                prepared.operations,
                commit_message=title,
                commit_description=f"{TRAILER}: {self.job_id}",
                parent_commit=prepared.parent,
            )
        return self._publication(made.oid)

    def _publication(self, commit: str) -> Publication:
        url = f"{self.api.endpoint}/{self.repo_id}/commit/{commit}"
        return Publication(repo_id=self.repo_id, commit=commit, url=url)


def _is_ours(name: str) -> bool:
    """Whether an earlier artifact can have left a file of this name."""
    return "/" not in name or is_side_file(name) or name.startswith(f"{BESIDE_FOLDER}/")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Uploaded files that no commit names yet."""

    parent: str
    operations: list[CommitOperationAdd | CommitOperationDelete]

    def __post_init__(self) -> None:
        if not self.operations:
            raise HubError("artifact_load_failed", "the artifact folder is empty")
