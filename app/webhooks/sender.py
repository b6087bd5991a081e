"""Sends due webhook messages from a background thread. Several processes may do it."""

import json
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from app.db import webhooks
from app.db.models import WebhookSecret
from app.db.session import Database, is_away, now
from app.domain.errors import SecretUnreadableError
from app.secrets import Sealer
from app.telemetry import WEBHOOKS, log
from app.webhooks.signing import headers
from app.webhooks.targets import Network, parse_target, send

MAX_CONCURRENT = 8
GONE = 410


@dataclass(slots=True)
class WebhookSender:
    """A thread that looks for due messages every `pause_seconds`."""

    database: Database
    sealer: Sealer
    trusted: Sequence[Network]
    pause_seconds: float
    _stop: threading.Event = field(default_factory=threading.Event)
    _free: threading.Event = field(default_factory=threading.Event)
    """A message has landed."""
    _on_their_way: dict[str, webhooks.Due] = field(default_factory=dict)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the messages on their way."""
        self._stop.set()
        self._free.set()
        if self._thread is not None:
            self._thread.join(timeout=20)

    def send_due(self) -> int:
        """Send what is due, and wait for that; return how many messages it was."""
        with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
            return self._begin(pool)

    def _run(self) -> None:
        with ThreadPoolExecutor(MAX_CONCURRENT, thread_name_prefix="webhook") as pool:
            while not self._stop.is_set():
                self._free.clear()
                try:
                    begun = self._begin(pool)
                except Exception as error:  # noqa: BLE001  the edge of a thread
                    begun = 0
                    self._note(error)
                if begun == 0 or len(self._on_their_way) >= MAX_CONCURRENT:
                    self._free.wait(self.pause_seconds)

    def _begin(self, pool: ThreadPoolExecutor) -> int:
        """Fill free places with what is due: one that hangs takes its own place, and no other's."""
        flying = list(self._on_their_way.values())
        due = webhooks.claim_due(self.database, MAX_CONCURRENT - len(flying), flying)
        for one in due:
            self._on_their_way[one.id] = one
            pool.submit(self._deliver, one).add_done_callback(partial(self._land, one))
        return len(due)

    def _land(self, due: webhooks.Due, done: "Future[None]") -> None:
        self._on_their_way.pop(due.id, None)
        self._free.set()
        error = done.exception()
        if error is not None:
            self._note(error)

    def _note(self, error: BaseException) -> None:
        if is_away(error):
            log.warning("webhooks_wait", error=type(error).__name__)
        else:
            log.error("webhooks_bug", exc_info=error)

    def _deliver(self, due: webhooks.Due) -> None:
        body = json.dumps(due.payload, sort_keys=True, separators=(",", ":")).encode()
        try:
            target = parse_target(due.url, self.trusted)
            signed = headers(self._secrets(due.tenant), due.id, int(time.time()), body)
            sent = {"Content-Type": "application/json", "User-Agent": "spq-webhooks", **signed}
            answer = send(target, body, sent, self.trusted)
        except Exception as error:  # noqa: BLE001  whatever an endpoint makes happen is a failed try
            self._failed(due, None, f"{type(error).__name__}: {error}", 0.0)
            return
        if 200 <= answer.status < 300:  # noqa: PLR2004 - success, in HTTP
            webhooks.delivered(self.database, due, answer.status)
            WEBHOOKS.labels("delivered").inc()
        elif answer.status == GONE:
            webhooks.gone(self.database, due)
            WEBHOOKS.labels("gone").inc()
        else:
            text = answer.retry_after
            asked = float(text) if text.isascii() and text.isdigit() else 0.0
            self._failed(due, answer.status, f"the endpoint answered {answer.status}", asked)

    def _failed(self, due: webhooks.Due, status: int | None, error: str, asked: float) -> None:
        WEBHOOKS.labels("failed").inc()
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - nothing secret
        webhooks.failed(
            self.database, due, status=status, error=error, retry_after=asked, jitter=jitter
        )

    def _secrets(self, tenant: str) -> list[str]:
        """The tenant's signing secret, and for a while the one before."""
        with self.database.read() as session:
            row = session.get(WebhookSecret, tenant)
            moment = now(session) if row is not None else datetime.now(UTC)
        if row is None:
            raise SecretUnreadableError
        found = [self.sealer.open(row.sealed)]
        if row.previous is not None and row.previous_until and row.previous_until > moment:
            with suppress(SecretUnreadableError):  # sealed with a key that is gone
                found.append(self.sealer.open(row.previous))
        return found
