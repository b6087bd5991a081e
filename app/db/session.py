"""Engine and transactions for both databases."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    create_engine,
    event,
    func,
    literal,
    select,
)  # fmt: skip
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from app.db.base import UtcDateTime

SQLITE_BUSY_MS = 15_000
STATEMENT_TIMEOUT_MS = 10_000
CONNECTIONS = 20
"""Of one process; the API's threads are fewer, so none of them waits for one."""
TRUSTED_SECONDS = 1.0
IDLE_IN_TRANSACTION_MS = 30_000
"""A frozen process must not hold its locks without end."""
AFTERWARDS = "afterwards"
AWAY_STATES = frozenset({"25006", "25P03", "25P04"})
"""SQLSTATEs: read-only (a demoted primary), and transactions ended for having waited."""
AWAY_CLASSES = ("08", "57P")
"""Of connections, and of shutdowns."""


class Database:
    """Opens transactions; each use case takes one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Looking needs no transaction around it: each statement sees what was committed before it.
        sqlite = engine.dialect.name == "sqlite"
        looking = {"read_only": True} if sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._looking = engine.execution_options(**looking)
        self._writer = sessionmaker(engine, expire_on_commit=False)
        self._reader = sessionmaker(self._looking, expire_on_commit=False)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end and rolls back on an error."""
        with self._writer.begin() as session:
            yield session
        for call in session.info.pop(AFTERWARDS, ()):
            call(self)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for statements that only look, each by itself; they never make a SQLite writer wait."""
        with self._reader() as session:
            yield session

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """A connection, as `read`, for the statements of every request: without a session they cost half."""
        with self._looking.connect() as connection:
            yield connection

    @contextmanager
    def single(self) -> Iterator[Connection]:
        """A connection for one statement that writes, and is committed at once."""
        sqlite = self.engine.dialect.name == "sqlite"
        with self.engine.begin() if sqlite else self._looking.connect() as connection:
            yield connection

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def connect(url: str) -> Database:
    """Make the engine for a SQLAlchemy URL; connects on first use."""
    if url.startswith("sqlite"):
        engine = create_engine(
            url, hide_parameters=True, connect_args={"timeout": SQLITE_BUSY_MS / 1000}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        options = (
            f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC "
            f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}"
        )
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=CONNECTIONS,
            max_overflow=10,
            connect_args={
                "options": options,
                "connect_timeout": 5,
                "tcp_user_timeout": 15_000,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
            },
        )
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", partial(_ping_unused, engine.dialect))
    return Database(engine)


def is_away(error: BaseException) -> bool:
    """Whether an error says that the database is not there for the moment, and not that a statement is wrong.

    A server that restarts, was demoted, or ended a connection that a frozen process had left in a transaction
    comes as different classes.
    """
    if isinstance(error, OperationalError | PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None) or ""
    return error.connection_invalidated or state in AWAY_STATES or state.startswith(AWAY_CLASSES)


def afterwards(session: Session, call: Callable[[Database], None]) -> None:
    """Have something done once this transaction has committed; never, if it does not."""
    session.info.setdefault(AFTERWARDS, []).append(call)


def now(session: Session) -> datetime:
    """The database's clock, so that all machines agree on when a lease ends."""
    if is_sqlite(session):
        return datetime.now(UTC)
    moment: datetime = session.scalars(select(func.clock_timestamp())).one()
    return moment


def clock(session: Session | Connection) -> ColumnElement[datetime]:
    """`now` as a part of a statement, which saves asking for it."""
    if is_sqlite(session):
        return literal(datetime.now(UTC), UtcDateTime())
    return func.clock_timestamp(type_=UtcDateTime())


def is_sqlite(session: Session | Connection) -> bool:
    """Whether it speaks to SQLite, which has one writer at a time and no clock of its own."""
    bind = session.get_bind() if isinstance(session, Session) else session
    return bind.dialect.name == "sqlite"


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["used"] = time.monotonic()


def _ping_unused(
    dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _proxy: Any
) -> None:
    """Have a connection replaced that broke while nobody used it. One that worked recently is not asked."""
    used = record.info.get("used")
    if used is None or time.monotonic() - used < TRUSTED_SECONDS:
        return  # a new one is not asked either: if it broke, its first statement says so
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise DisconnectionError from error


def _prepare_sqlite(connection: DBAPIConnection, _record: Any) -> None:
    """WAL, foreign keys, and transactions that we begin ourselves."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "foreign_keys=ON",
        f"busy_timeout={SQLITE_BUSY_MS}",
        "synchronous=NORMAL",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Writers take the lock at once: upgrading a read lock later can fail without waiting."""
    reading = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
