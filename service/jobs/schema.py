"""Making the tables, and what a database says about itself: its version and its salt."""

from __future__ import annotations

import secrets
from typing import Final

from sqlalchemy import Connection, insert, select, update

from service.jobs.database import Database
from service.jobs.errors import StoreError
from service.jobs.tables import about, metadata

SCHEMA_VERSION: Final = 1
SALT_BYTES: Final = 32

_VERSION: Final = "schema_version"
_SALT: Final = "key_salt"
_TOUCHED: Final = "touched"


def prepare(database: Database) -> bytes:
    """Make what is missing.

    Returns:
        The salt of the keys' digests, which is made with the database.

    Raises:
        StoreError: When a newer Edgefill made the tables, or they cannot be made.
    """

    def work(connection: Connection) -> bytes:
        database.serialise(connection)
        metadata.create_all(connection)
        found = {row.name: row.value for row in connection.execute(select(about))}
        if not found:
            found = {
                _VERSION: str(SCHEMA_VERSION),
                _SALT: secrets.token_hex(SALT_BYTES),
                _TOUCHED: "0",
            }
            rows = [{"name": name, "value": value} for name, value in found.items()]
            connection.execute(insert(about), rows)
        version = found[_VERSION]
        if version != str(SCHEMA_VERSION):
            raise StoreError(
                f"the jobs database has version {version}, this Edgefill reads {SCHEMA_VERSION}"
            )
        return bytes.fromhex(found[_SALT])

    return database.write(work)


def touch(connection: Connection) -> None:
    """Write something, to see whether that works."""
    statement = update(about).where(about.c.name == _TOUCHED)
    connection.execute(statement.values(value=secrets.token_hex(4)))
