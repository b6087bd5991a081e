"""`spq api | migrate | keys | tenants`: the parts of a deployment that need no torch."""

import json
from pathlib import Path

import click
import uvicorn
from cryptography.fernet import Fernet
from fastapi import FastAPI

from app.db.keys import SCOPES, create_key, key_state, list_keys, revoke_key, rotate_key
from app.db.migrate import upgrade
from app.db.quotas import set_limits, tenants
from app.db.session import connect, now
from app.http.protocol import BoundedHead
from app.main import create_app
from app.privacy import hide_process
from app.settings import ApiSettings
from app.telemetry import configure_logging

SHUTDOWN_SECONDS = 5
"""For requests on their way; event streams would go on for hours."""


def own_database() -> str:
    """The database that `spq serve` keeps where it is not told otherwise.

    Raises:
        UsageError: there is none.
    """
    path = Path("~/.spq/spq.db").expanduser()
    if not path.is_file():
        raise click.UsageError(f"set SPQ_DATABASE_URL or --database-url; {path} does not exist")
    return f"sqlite:///{path}"


URL_OPTION = click.option(
    "--database-url",
    envvar="SPQ_DATABASE_URL",
    default=own_database,
    help="SQLAlchemy URL; SPQ_DATABASE_URL, or else that of `spq serve` with its usual home.",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def run_api(app: FastAPI, host: str, port: int) -> None:
    """Serve until a signal ends the process."""
    hide_process()
    uvicorn.run(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS, http=BoundedHead,
    )  # fmt: skip


@click.command("api")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
def api_command(host: str, port: int) -> None:
    """Run the HTTP API; settings come from SPQ_* variables."""
    configure_logging()
    app = create_app(ApiSettings())
    run_api(app, host, port)


@click.command("migrate")
@URL_OPTION
def migrate_command(database_url: str) -> None:
    """Bring the database to the newest schema."""
    upgrade(database_url)
    click.echo("the database has the newest schema")


@click.group("keys")
def keys_group() -> None:
    """Create, list, rotate and revoke API keys; make keys for stored secrets."""


@keys_group.command("create")
@URL_OPTION
@JSON_OPTION
@click.option("--name", default="default", show_default=True, help="What the key is for.")
@click.option("--tenant", default="default", show_default=True, help="Whose jobs it sees.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="Repeat for several; all by default.",
)
@click.option("--days", type=click.IntRange(min=1), help="Expire after this many days.")
def create_command(
    database_url: str,
    as_json: bool,
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    days: int | None,
) -> None:
    """Make a key and print it, once; only its digest is stored."""
    with connect(database_url).write() as session:
        row, key = create_key(session, name=name, tenant=tenant, scopes=scopes or SCOPES, days=days)
    click.echo(json.dumps({"id": row.id, "tenant": tenant, "key": key}) if as_json else key)


@keys_group.command("list")
@URL_OPTION
@JSON_OPTION
def list_command(database_url: str, as_json: bool) -> None:
    """List keys; the keys themselves are not known."""
    with connect(database_url).read() as session:
        moment = now(session)
        rows = [
            {
                "id": row.id,
                "name": row.name,
                "tenant": row.tenant,
                "scopes": row.scopes,
                "live": key_state(row, moment) == "live",
                "state": key_state(row, moment),
                "expires_at": None if row.expires_at is None else row.expires_at.isoformat(),
            }
            for row in list_keys(session)
        ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        until = f"until {row['expires_at']!s:.16}Z" if row["expires_at"] else "never expires"
        click.echo(
            f"{row['id']}  {row['tenant']:16} {row['name']:16} {row['state']:8} {until:23} {row['scopes']}"
        )


@keys_group.command("rotate")
@URL_OPTION
@JSON_OPTION
@click.argument("key_id")
@click.option(
    "--hours",
    default=24,
    show_default=True,
    type=click.IntRange(min=0),
    help="The old key works so long.",
)
def rotate_command(database_url: str, as_json: bool, key_id: str, hours: int) -> None:
    """Make a key with the same tenant and scopes, and let the old one expire."""
    with connect(database_url).write() as session:
        made = rotate_key(session, key_id, hours=hours)
    if made is None:
        raise click.ClickException(f"there is no live key {key_id!r}; spq keys list shows them")
    row, key = made
    document = {"id": row.id, "tenant": row.tenant, "key": key}
    click.echo(json.dumps(document) if as_json else key)


@keys_group.command("seal")
def seal_command() -> None:
    """Print a new key for SPQ_SECRET_KEYS, which stored secrets are encrypted with."""
    click.echo(Fernet.generate_key().decode("ascii"))


@keys_group.command("revoke")
@URL_OPTION
@click.argument("key_id")
def revoke_command(database_url: str, key_id: str) -> None:
    """Make a key useless at once."""
    with connect(database_url).write() as session:
        revoked = revoke_key(session, key_id)
    if not revoked:
        raise click.ClickException(f"there is no live key {key_id!r}; spq keys list shows them")
    click.echo(f"revoked {key_id}")


@click.group("tenants")
def tenants_group() -> None:
    """Set and show what tenants may have."""


@tenants_group.command("limit")
@URL_OPTION
@click.argument("tenant")
@click.option("--active-jobs", type=click.IntRange(min=0), help="Queued and running jobs.")
@click.option("--jobs-per-day", type=click.IntRange(min=0), help="Jobs submitted in 24 hours.")
@click.option("--minutes-per-day", type=click.IntRange(min=0), help="Minutes of runs in 24 hours.")
@click.option("--stored-bytes", type=click.IntRange(min=0), help="Bytes of artifacts in the store.")
@click.option("--lift", is_flag=True, help="Lift the limits that are not given.")
def limit_command(database_url: str, tenant: str, lift: bool, **given: int | None) -> None:
    """Limit what TENANT may have; limits not given stay as they are."""
    limits = {f"max_{name}": value for name, value in given.items() if lift or value is not None}
    with connect(database_url).write() as session:
        known = tenant in tenants(session)
        row = set_limits(session, tenant, limits)
        session.flush()
        shown = {name: getattr(row, f"max_{name}") for name in given}
    told = ", ".join(
        f"{name} {'unlimited' if value is None else value}" for name, value in shown.items()
    )
    click.echo(f"{tenant}: {told}")
    if not known:
        click.echo(f"note: there is no key of a tenant {tenant!r} yet", err=True)


@tenants_group.command("list")
@URL_OPTION
@JSON_OPTION
def list_tenants_command(database_url: str, as_json: bool) -> None:
    """List tenants that have keys or limits, with their limits; none is unlimited."""
    with connect(database_url).read() as session:
        found = tenants(session)
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, limits in found.items():
        told = ", ".join(f"{limit} {value}" for limit, value in limits.items() if value is not None)
        click.echo(f"{name:16} {told or 'unlimited'}")
