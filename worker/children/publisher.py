"""Child program: put a finished artifact on the Hub. Has the token, loads no model.

It uploads first, then asks whether it still may commit, so that a job canceled or lost meanwhile
leaves nothing visible.
"""

import sys
from pathlib import Path

from spq_core.hub.client import hub_api
from spq_core.hub.publish import Prepared, Publication, Publisher
from worker.children.hub import serve_with_hub, with_retries
from worker.children.messages import Published, PublishSpec, Ready
from worker.children.protocol import emit


def publish(spec: PublishSpec) -> None:
    """Upload, wait for permission, commit."""
    publisher = Publisher(hub_api(spec.endpoint, spec.token), spec.repo_id, spec.job_id)
    done = with_retries(publisher.existing)
    if done is None:
        prepared = with_retries(lambda: publisher.upload(Path(spec.folder), private=spec.private))
        emit(Ready())
        if sys.stdin.readline().strip() != "commit":
            return
        done = with_retries(lambda: _commit_once(publisher, prepared, spec.title))
    emit(Published(repo_id=done.repo_id, commit=done.commit, url=done.url))


def _commit_once(publisher: Publisher, prepared: Prepared, title: str) -> Publication:
    """Commit, unless an earlier try whose answer was lost already did."""
    return publisher.existing() or publisher.commit(prepared, title)


if __name__ == "__main__":
    serve_with_hub(PublishSpec, publish)
