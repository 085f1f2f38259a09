"""Every secret that a run of the tests makes is a canary: none may turn up anywhere else.

Looked through are all tables of the session's PostgreSQL, the logs of its parts and of all
processes that tests started, what tests print, and the bodies of refusals.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from flask.testing import FlaskClient
from psycopg import sql

from app.keyring import Keyring
from app.stack import part, secrets, up
from app.stack.postgres import LocalPostgres
from app.tenants import keys

T = TypeVar("T")

#: Long runs of the alphabets that secrets are written in: base 32, base 64, hex.
_TOKEN = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_LEAST_CHARACTERS = 24


class Canaries:
    """The secrets made so far, by where they come from, and where they turned up."""

    def __init__(self) -> None:
        #: Secret → what it is.
        self.known: dict[str, str] = {}
        self.leaks: list[str] = []

    def add(self, secret: str, what: str) -> None:
        """Watch for this secret from now on."""
        if len(secret) >= _LEAST_CHARACTERS:
            self.known[secret.rstrip("=")] = what

    def look(self, text: str, where: str) -> None:
        """Note each secret that stands in ``text``."""
        for token in _TOKEN.findall(text):
            # A key's text joins its parts by underscores, a path by slashes.
            for word in {token.rstrip("="), *token.split("_"), *token.split("/")}:
                what = self.known.get(word)
                if what is not None:
                    self.leaks.append(f"{what} stands in {where}")

    def look_through_files(self, paths: Iterable[Path]) -> None:
        """Look through files, however long."""
        for path in paths:
            with path.open(errors="replace") as lines:
                for line in lines:
                    self.look(line, f"{path.name}: {line[:200]!r}")

    def look_through_databases(self, postgres: LocalPostgres) -> None:
        """Look through every row of every table of every database."""
        for database in _rows(postgres, "postgres", sql.SQL(_DATABASES)):
            for table in _rows(postgres, database, sql.SQL(_TABLES)):
                query = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))
                for row in _rows(postgres, database, query):
                    self.look(row, f"a row of {database}.{table}")


_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate"
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


def _rows(postgres: LocalPostgres, database: str, query: sql.SQL | sql.Composed) -> Iterator[str]:
    url = postgres.url("postgres", postgres.secrets.admin_password, database)
    with psycopg.connect(url) as connection, connection.cursor("look") as cursor:
        cursor.itersize = 1000
        cursor.execute(query)
        for (value,) in cursor:
            yield value


#: Those of this process.
CANARIES = Canaries()


def watch() -> None:
    """Take every secret that is made in this process from now on, and look at every refusal."""
    for module in (secrets, part, up):
        module.load_secrets = _after(module.load_secrets, _add_local_secrets)  # type: ignore[attr-defined]
    keys._hash_secret = _before(keys._hash_secret, _add_key)
    Keyring.seal = _before(Keyring.seal, _add_sealed)  # type: ignore[method-assign]
    FlaskClient.open = _after(FlaskClient.open, _look_at_answer)  # type: ignore[method-assign]


def _add_local_secrets(made: secrets.LocalSecrets) -> None:
    for name in made.__slots__:
        CANARIES.add(str(getattr(made, name)).rpartition(":")[2], name)


def _add_key(secret: str, *_: Any) -> None:
    CANARIES.add(secret, "the secret of a key")


def _add_sealed(_: Keyring, secret: bytes, about: str) -> None:
    what = f"what was sealed for {about.partition(':')[0]}"
    for text in (secret.hex(), base64.b64encode(secret).decode(), secret.decode(errors="replace")):
        CANARIES.add(text, what)
        CANARIES.add(text.removeprefix("whsec_"), what)


def _look_at_answer(answer: Any) -> None:
    if answer.status_code >= 400 and not answer.is_streamed:
        CANARIES.look(answer.get_data(as_text=True), f"an answer of status {answer.status_code}")


def _before(function: Callable[..., T], note: Callable[..., None]) -> Callable[..., T]:
    def noted(*words: Any, **named: Any) -> T:
        note(*words, **named)
        return function(*words, **named)

    return noted


def _after(function: Callable[..., T], note: Callable[[T], None]) -> Callable[..., T]:
    def noted(*words: Any, **named: Any) -> T:
        result = function(*words, **named)
        note(result)
        return result

    return noted
