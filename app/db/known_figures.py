"""Figures of sources and of plain INT8 that any worker measured, for those on other machines.

A source is named by whoever ran it, and a file by what it depends on (`spq_core.evaluation.known`); what is in it, only a run reads.
"""

from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.models import KnownFigure
from app.db.session import Database, clock, is_sqlite, now


class FigureName(NamedTuple):
    """Of a file, below its source."""

    digest: str
    """Of the model's weights."""
    name: str


def known_names(session: Session, source: str) -> set[FigureName]:
    """What is known of a source."""
    query = select(KnownFigure.digest, KnownFigure.name).where(KnownFigure.source == source)
    return {FigureName(*row) for row in session.execute(query)}


def known_figures(
    session: Session, source: str, names: Collection[FigureName]
) -> Iterable[tuple[FigureName, str]]:
    """The contents of some of it."""
    for digest, name in names:
        content = session.scalar(
            select(KnownFigure.content).where(
                KnownFigure.source == source, KnownFigure.digest == digest, KnownFigure.name == name
            )
        )
        if content is not None:
            yield FigureName(digest, name), content


def keep_figures(database: Database, source: str, files: Iterable[tuple[FigureName, str]]) -> None:
    """Let other workers know; what is known stays."""
    with database.write() as session:
        dialect = sqlite if is_sqlite(session) else postgresql
        for (digest, name), content in files:
            row = {"source": source, "digest": digest, "name": name, "content": content}
            insert = dialect.insert(KnownFigure).values(**row, created_at=clock(session))
            session.execute(insert.on_conflict_do_nothing())


def forget_figures(database: Database, days: int) -> None:
    """Those that were measured so long ago."""
    with database.write() as session:
        session.execute(
            delete(KnownFigure).where(KnownFigure.created_at < now(session) - timedelta(days=days))
        )
