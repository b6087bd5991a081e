"""Server-Sent Events, read line by line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple


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
