"""How many clients may wait for news at once: each of them costs a look at the database every half second."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

OF_ONE_KEY = 100
OF_A_PROCESS = 400


class WaitingRoom:
    """Counts long polls and event streams of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()

    def is_full(self, key_id: str) -> bool:
        """Whether there is no place for a client with this key."""
        return self._waiting[key_id] >= OF_ONE_KEY or self._waiting.total() >= OF_A_PROCESS

    @contextmanager
    def place(self, key_id: str) -> Iterator[bool]:
        """Take a place for the block, if there is one: whether there was."""
        with self._lock:
            free = not self.is_full(key_id)
            self._waiting[key_id] += free
        try:
            yield free
        finally:
            with self._lock:
                self._waiting[key_id] -= free
                if not self._waiting[key_id]:
                    del self._waiting[key_id]
