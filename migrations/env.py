"""Alembic's entry: the URL comes from the caller, or from SPQ_DATABASE_URL on the command line."""

import os

from alembic import context
from sqlalchemy import NullPool, create_engine, make_url

from app.db import browser_sessions, models, sweep_models  # noqa: F401 - the tables
from app.db.base import Base

LOCK_TIMEOUT_MS = 5_000
"""A migration that cannot get its lock gives up instead of making every request wait. The default of its
session, to which `RESET lock_timeout` returns."""


def run() -> None:
    """Migrate over one connection."""
    url = context.config.attributes.get("url") or os.environ["SPQ_DATABASE_URL"]
    postgres = make_url(url).get_backend_name() == "postgresql"
    timeout = context.config.attributes.get("lock_timeout_ms", LOCK_TIMEOUT_MS)
    options = {"options": f"-c lock_timeout={timeout}"} if postgres else {}
    engine = create_engine(url, poolclass=NullPool, connect_args=options)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
