"""Server-Sent Events: read line by line, and gone on with where a stream broke off."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spq_client.calls import Answer, Patience

ENDED = Answer(0, {}, None, "the stream ended before what it is of")


class Event(NamedTuple):
    """One event of a stream."""

    id: str
    type: str
    data: Any


@dataclass(slots=True)
class Parser:
    """Takes lines, gives events."""

    _id: str = ""
    _type: str = "message"
    _data: list[str] = field(default_factory=list)

    def take(self, line: str) -> Iterator[Event]:
        """The event that a line completes, if it does."""
        if line == "":
            if self._data:
                yield Event(self._id, self._type, json.loads("\n".join(self._data)))
            self._type, self._data = "message", []
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self._id = value
        elif name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)


class Stream:
    """What to ask for next, what the lines say, how long to pause where it broke off."""

    def __init__(self, patience: float) -> None:
        """Begin; `patience`: seconds without anything new after which a broken stream is given up."""
        self._last, self._patience, self._parser = "", Patience(patience), Parser()

    def headers(self) -> dict[str, str]:
        """Of the next request."""
        self._parser = Parser()
        seen = {"Last-Event-ID": self._last} if self._last else {}
        return {"Accept": "text/event-stream"} | seen

    def take(self, line: str) -> Iterator[Event]:
        """The event that a line completes, if it does."""
        for event in self._parser.take(line):
            self._last = event.id or self._last
            self._patience.progress()
            yield event

    def pause(self, broke: Answer | None) -> float:
        """Seconds until the next request; None: it ended by itself, as a quiet stream does now and then.

        Raises:
            ServiceError: patience is over.
        """
        if broke is None:
            self._patience.progress()
        return self._patience.pause(broke or ENDED)
