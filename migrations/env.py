"""Alembic's entry: the URL comes from the caller, or from SPQ_DATABASE_URL on the command line."""

import os

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from app.db import models  # noqa: F401  the import fills Base.metadata
from app.db.base import Base

LOCK_TIMEOUT_MS = 5_000
"""A migration that cannot get its lock gives up instead of making every request wait."""


def run() -> None:
    """Migrate over one connection."""
    url = context.config.attributes.get("url") or os.environ["SPQ_DATABASE_URL"]
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET lock_timeout = {LOCK_TIMEOUT_MS}"))
            connection.commit()
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
