"""Bring a database to the newest schema, and tell whether it is there."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.db.session import Database

SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"


def alembic_config(url: str) -> Config:
    """Alembic's configuration for a database URL; `%` is Alembic's own escape."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["url"] = url
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations up to `revision`."""
    command.upgrade(alembic_config(url), revision)


def at_head(database: Database) -> bool:
    """Whether the database has the newest schema, or one that came after this code.

    Migrations leave what the version before them needs, and run before its processes end.
    """
    scripts = ScriptDirectory(str(SCRIPTS))
    with database.engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    return found == scripts.get_current_head() or (found is not None and found not in known)
