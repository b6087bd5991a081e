"""An artifact from the service into a folder."""

import tempfile
from pathlib import Path

import click

from app.client.http import ApiError, Client
from spq_core.artifact.manifest import is_inside


def download_artifact(client: Client, job_id: str, out: Path | None) -> Path:
    """Fetch a job's artifact, and compare every file with its digest; all of it is there, or nothing.

    Args:
        out: a new folder; by default one named after the job.

    Raises:
        ApiError: it has no artifact, the folder exists, or the service answers with something else.
    """
    folder = out or Path(job_id)
    files = client.call("GET", f"/jobs/{job_id}/artifacts")["data"]
    if not files:
        raise ApiError("artifact_not_found", f"{job_id} has no artifact; spq jobs show tells why")
    if folder.exists():
        raise ApiError("output_exists", f"{folder} exists; name another with --out")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.absolute().parent, prefix=f"{folder.name}."
    ) as part:
        for number, file in enumerate(files, start=1):
            click.echo(f"[{number}/{len(files)}] {file['path']}", err=True)
            if not is_inside(file["path"]):
                raise ApiError("artifact_damaged", f"{file['path']!r} is not a file of an artifact")
            (Path(part) / file["path"]).parent.mkdir(exist_ok=True)
            client.download(
                f"/jobs/{job_id}/artifacts/{file['path']}",
                Path(part) / file["path"],
                file["sha256"],
            )
        whole = Path(part).rename(folder)  # in one step: an interrupted download leaves nothing
        whole.chmod(0o755)
        Path(part).mkdir()  # for its own removal
    return folder
