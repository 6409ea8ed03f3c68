"""Copy an index to a vector database: Qdrant, or PostgreSQL with pgvector.

Addresses: qdrant+http://HOST:6333/COLLECTION, qdrant+https://..., qdrant:FOLDER/COLLECTION (Qdrant's
in-process mode), postgresql://USER@HOST/DATABASE?table=TABLE. Passwords and keys come from QDRANT_API_KEY and
PostgreSQL's own PGPASSWORD or ~/.pgpass. What the server holds under that name becomes what the index holds.
"""

import os
import uuid
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import numpy as np
from jaxtyping import Float

from omma.core.errors import install_command, line
from omma.core.progress import Progress
from omma.retrieval.recall import K, Recall, compared, sampled
from omma.retrieval.store import Index

BATCH = 500  # rows sent at a time
HNSW_MOST = 2000  # numbers of a vector that pgvector's index takes
SPACE = uuid.UUID("5f1a2c1e-0a53-4c2f-9f7e-6d1d8a1b7c11")  # of the ids, which are made of paths


class _Server(Protocol):
    """A database that takes rows and answers queries."""

    def replace(self, index: Index, progress: Progress | None) -> int:
        """Make its content that of the index; returns how many rows it holds then."""
        ...

    def nearest(self, vector: Float[np.ndarray, "d"], k: int) -> list[str]:
        """The paths that it finds nearest."""
        ...

    def close(self) -> None: ...


def send(index: Index, address: str, progress: Progress | None = None) -> Recall:
    """Copy the index to a server, and measure what that finds against the exact search.

    Raises ValueError, in one line, for an address of another form, a server that does not answer, or one that
    holds another number of rows afterwards.
    """
    server = _server(address)
    try:
        held = server.replace(index, progress)
        if held != len(index):
            raise ValueError(f"{shown(address)} holds {held:,} rows of {len(index):,}: send them again")
        queries = sampled(index)
        k = min(K, len(index))
        exact = index.search(queries, k).indices
        row_of = {path: row for row, path in enumerate(index.paths())}
        found = np.full((len(queries), k), -1, np.int64)
        for number, vector in enumerate(queries):
            rows = [row_of.get(path, -1) for path in server.nearest(vector, k)]
            found[number, : len(rows)] = rows
        return compared(exact, found)
    except ValueError:
        raise
    except Exception as error:  # of the clients, which raise many kinds
        why = line(error)[:200]
        raise ValueError(f"{shown(address)}: {why}; look at the server and its address") from error
    finally:
        server.close()


def check(address: str) -> None:
    """Raise ValueError for an address of a form that is not known."""
    if address.startswith(("qdrant+http://", "qdrant+https://", "qdrant:")):
        _, _, name = address.rstrip("/").rpartition("/")
        if (name and "://" not in address) or urlsplit(address).path.strip("/"):
            return
    elif address.startswith(("postgresql://", "postgres://")):
        return
    raise ValueError(
        f"--to {shown(address)}: give qdrant+http://HOST:6333/COLLECTION, qdrant:FOLDER/COLLECTION or "
        "postgresql://USER@HOST/DATABASE?table=TABLE"
    )


def shown(address: str) -> str:
    """An address without a password."""
    parts = urlsplit(address)
    if parts.password is None:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


def _server(address: str) -> _Server:
    check(address)
    try:
        return Qdrant(address) if address.startswith("qdrant") else Postgres(address)
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: {install_command('servers')} brings it") from None


def _rows(index: Index) -> Iterator[tuple[list[dict[str, Any]], Float[np.ndarray, "b d"]]]:
    """Columns and vectors, a batch at a time."""
    for start in range(0, len(index), BATCH):
        part = index.table.slice(start, BATCH).select(list(index.columns))
        yield part.to_pylist(), index.vectors(np.arange(start, start + len(part)))


class Qdrant:
    """A collection; points have an id made of the path, and all columns as payload."""

    GENERATION = "_omma"

    def __init__(self, address: str) -> None:
        from qdrant_client import QdrantClient, models

        self.models = models
        place, _, self.name = address.rstrip("/").rpartition("/")
        if place.startswith("qdrant+"):
            key = os.environ.get("QDRANT_API_KEY")
            self.client = QdrantClient(url=place.removeprefix("qdrant+"), api_key=key, timeout=60)
        else:
            self.client = QdrantClient(path=place.removeprefix("qdrant:"))

    def replace(self, index: Index, progress: Progress | None) -> int:
        models, client, name = self.models, self.client, self.name
        if not client.collection_exists(name):
            size = models.VectorParams(size=index.dim, distance=models.Distance.COSINE)
            client.create_collection(name, vectors_config=size)
        generation, done = uuid.uuid4().hex, 0
        for rows, vectors in _rows(index):
            points = [
                models.PointStruct(
                    id=str(uuid.uuid5(SPACE, row["path"])),
                    vector=vector.tolist(),
                    payload={k: _plain(v) for k, v in row.items()} | {self.GENERATION: generation},
                )
                for row, vector in zip(rows, vectors)
            ]
            client.upsert(name, points=points, wait=True)
            done += len(points)
            if progress:
                progress(done, len(index))
        mine = models.FieldCondition(key=self.GENERATION, match=models.MatchValue(value=generation))
        others = models.FilterSelector(filter=models.Filter(must_not=[mine]))
        client.delete(name, points_selector=others, wait=True)
        return client.count(name, exact=True).count

    def nearest(self, vector: Float[np.ndarray, "d"], k: int) -> list[str]:
        found = self.client.query_points(self.name, query=vector.tolist(), limit=k, with_payload=["path"])
        return [str((point.payload or {})["path"]) for point in found.points]

    def close(self) -> None:
        self.client.close()


class Postgres:
    """A table: path (its key), label, the other columns as JSON, vector; replaced in one transaction."""

    def __init__(self, address: str) -> None:
        import pgvector  # noqa: F401  # its name in the message, where it is missing
        import psycopg

        parts = urlsplit(address)
        options = parse_qs(parts.query)
        self.table = options.pop("table", ["omma"])[0]
        query = urlencode(options, doseq=True)
        try:
            self.connection = psycopg.connect(urlunsplit(parts._replace(query=query)), connect_timeout=10)
        except psycopg.Error as error:
            why = line(error)[:150]
            raise ValueError(f"{shown(address)} does not answer ({why}): start it, or mend it") from None

    def _run(self, text: str, *values: Any) -> Any:
        from psycopg import sql

        query = sql.SQL(text).format(table=sql.Identifier(self.table))  # pyright: ignore[reportArgumentType]
        return self.connection.execute(query, values or None)

    def replace(self, index: Index, progress: Progress | None) -> int:
        from pgvector.psycopg import register_vector
        from psycopg import sql
        from psycopg.types.json import Json

        with self.connection.transaction():
            self._run("create extension if not exists vector")
            register_vector(self.connection)
            self._run("drop table if exists {table}")
            self._run(
                "create table {table} (path text primary key, label text, columns jsonb, "
                f"vector vector({index.dim}))"
            )
            done = 0
            target = sql.SQL("copy {} (path, label, columns, vector) from stdin with (format binary)")
            with self.connection.cursor().copy(target.format(sql.Identifier(self.table))) as copy:
                copy.set_types(["text", "text", "jsonb", "vector"])
                for rows, vectors in _rows(index):
                    for row, vector in zip(rows, vectors):
                        path, label = row.pop("path"), row.pop("label")
                        copy.write_row((path, label, Json({k: _plain(v) for k, v in row.items()}), vector))
                    done += len(rows)
                    if progress:
                        progress(done, len(index))
            if index.dim <= HNSW_MOST:
                self._run("create index on {table} using hnsw (vector vector_cosine_ops)")
        return int(self._run("select count(*) from {table}").fetchone()[0])

    def nearest(self, vector: Float[np.ndarray, "d"], k: int) -> list[str]:
        found = self._run("select path from {table} order by vector <=> %s limit %s", vector, k)
        return [str(path) for (path,) in found.fetchall()]

    def close(self) -> None:
        self.connection.close()


def _plain(value: Any) -> Any:
    """A value that JSON has; others as text."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
