"""A job's figures, settings, log and files as a run of MLflow.

MLFLOW_TRACKING_URI=http://mlflow:5000 python examples/to_mlflow.py job_… --experiment compression

Waits for the job's end, and logs failed ones, too: with the figures they had, as a failed run. A job is one run, however often
this is called. Needs mlflow and this package, without its extras: pip install mlflow ./spq
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run, RunStatus

from spq_client import Client

JOB_TAG = "spq.job"
STATUS = {
    "succeeded": RunStatus.FINISHED,
    "failed": RunStatus.FAILED,
    "canceled": RunStatus.KILLED,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("--experiment", default="compression")
    parser.add_argument("--weights", action="store_true", help="log the artifact's weights, too")
    asked = parser.parse_args()
    experiment = mlflow.set_experiment(asked.experiment)
    with Client() as spq:
        job = spq.wait(asked.job, check=False)
        with mlflow.start_run(run_id=run_of(job, experiment.experiment_id).info.run_id):
            mlflow.log_params(settings(job))
            mlflow.log_metrics(dict(figures(job)))
            mlflow.set_tags(tags(job))
            mlflow.log_dict(job, "job.json")
            mlflow.log_text(log_of(spq, job["id"]), "job.log")
            if job["status"] == "succeeded":
                log_files(spq, job["id"], weights=asked.weights)
            run_id = mlflow.active_run().info.run_id
    mlflow.MlflowClient().set_terminated(run_id, RunStatus.to_string(STATUS[job["status"]]))
    print(run_id)
    return 0


def run_of(job: dict[str, Any], experiment_id: str) -> Run:
    """The job's run; made where it has none yet."""
    client = mlflow.MlflowClient()
    known = client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{job['id']}'", max_results=1)
    name = f"{job['recipe']['metadata']['name']} {job['id'][-6:]}"
    made = {JOB_TAG: job["id"]}
    return known[0] if known else client.create_run(experiment_id, tags=made, run_name=name)


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """What was asked for."""
    asked = job["request"]["evaluation"]
    return {
        "model": job["model"], "source_commit": job["source_commit"],
        "recipe": job["recipe"]["metadata"]["name"], "recipe_sha256": job["recipe_sha256"],
        "texts": ",".join(asked["perplexity"]), "windows": asked["limit"], "tasks": ",".join(asked["tasks"]),
    }  # fmt: skip


def figures(job: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Every figure of every text, of the source, plain INT8 and the result: `wikitext2/result/kl`."""
    texts = (job["result"] or {}).get("texts") or {}
    for text, models in texts.items():
        for model, measured in models.items():
            for name, value in measured.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    yield f"{text}/{model}/{name}", float(value)


def tags(job: dict[str, Any]) -> dict[str, str]:
    """What a reader of the list of runs wants to see."""
    found = {"spq.status": job["status"], **job["labels"]}
    if job["verdict"]:
        found |= {
            "spq.verdict": job["verdict"]["word"],
            "mlflow.note.content": job["verdict"]["sentence"],
        }
    if job["error"]:
        found["spq.error"] = f"{job['error']['code']}: {job['error']['message']}"
    return found


def log_of(spq: Client, job_id: str) -> str:
    return "".join(f"{line['at']} {line['text']}\n" for line in spq.logs(job_id))


def log_files(spq: Client, job_id: str, *, weights: bool) -> None:
    """The artifact's files, by digest; weights only where they are wanted."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = (lambda _: True) if weights else (lambda path: not path.endswith(".safetensors"))
        spq.download(job_id, Path(folder), only=chosen)
        mlflow.log_artifacts(folder, "artifact")


if __name__ == "__main__":
    sys.exit(main())
