"""What the children that talk to the Hub share: they try again, and tell how it answered."""

import time
from collections.abc import Callable
from typing import TypeVar

from app.privacy import hide_process
from spq_core.hub.answers import count_answers
from spq_core.hub.errors import HubUnavailableError
from worker.children.messages import HubAnswered, Logged
from worker.children.protocol import Spec, emit, serve

RETRY_PAUSES_SECONDS = (1.0, 4.0, 10.0)

Result = TypeVar("Result")


def serve_with_hub(spec: type[Spec], main: Callable[[Spec], None]) -> None:
    """`serve` for a program that talks to the Hub: it also tells how that answered."""
    hide_process()
    answers = count_answers()

    def counted(found: Spec) -> None:
        try:
            main(found)
        finally:
            told = tuple((what[0], str(what[1]), times) for what, times in answers.items())
            emit(HubAnswered(answers=told))

    serve(spec, counted)


def with_retries(call: Callable[[], Result]) -> Result:
    """Call until the Hub answers, with growing pauses; the last failure is raised."""
    for pause in RETRY_PAUSES_SECONDS:
        try:
            return call()
        except HubUnavailableError as error:
            emit(Logged(text=f"{error}; trying again in {pause:g} s"))
            time.sleep(pause)
    return call()
