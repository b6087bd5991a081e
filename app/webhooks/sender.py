"""Sends due webhook messages from a background thread. Several processes may do it."""

import json
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from app.db import webhooks
from app.db.models import WebhookSecret
from app.db.session import Database, now
from app.domain.errors import SecretUnreadableError
from app.secrets import Sealer
from app.telemetry import WEBHOOKS, log
from app.webhooks.signing import headers
from app.webhooks.targets import Network, parse_target, send

AT_ONCE = 8
GONE = 410


@dataclass(slots=True)
class WebhookSender:
    """A thread that looks for due messages every `pause_seconds`."""

    database: Database
    sealer: Sealer
    trusted: Sequence[Network]
    pause_seconds: float
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the messages on their way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=20)

    def send_due(self) -> int:
        """Send what is due; return how many messages that were."""
        due = webhooks.claim_due(self.database)
        if due:
            with ThreadPoolExecutor(min(AT_ONCE, len(due))) as pool:
                list(pool.map(self._deliver, due))
        return len(due)

    def _run(self) -> None:
        while not self._stop.wait(self.pause_seconds):
            try:
                while self.send_due() and not self._stop.is_set():
                    pass
            except SQLAlchemyError as error:
                log.warning("webhooks_wait", error=type(error).__name__)
            except Exception as error:  # noqa: BLE001  the edge of a thread
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
