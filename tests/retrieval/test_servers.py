"""An index copied to Qdrant and to PostgreSQL with pgvector: real ones, where they are installed."""

import numpy as np
import pyarrow as pa
import pytest

from omma.retrieval import servers
from omma.retrieval.manifest import LABEL, PATH, IndexModel, Manifest
from omma.retrieval.store import Index
from omma.retrieval.writer import rows_of, writing

DIM, ROWS = 12, 300


@pytest.fixture
def folder(tmp_path):
    x = np.random.default_rng(0).standard_normal((ROWS, DIM))
    own = {
        PATH: pa.array([f'{i}\'s "photo".jpg' for i in range(ROWS)]),
        LABEL: pa.array(["o'neil", None] * (ROWS // 2)),
    }
    others = pa.table({"year": list(range(ROWS)), "score": [float("nan"), 0.5] * (ROWS // 2)})
    with writing(tmp_path / "i", Manifest(IndexModel("m", "d"), DIM, {})) as change:
        change.commit([rows_of(x, own, others)])
    return tmp_path / "i"


def without_some(folder):
    with writing(folder, Manifest(IndexModel("m", "d"), DIM, {})) as change:
        change.commit([], np.arange(50))
    return Index.open(folder)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The address of a server of this test's own."""
    pgserver = pytest.importorskip("pgserver", reason="pgserver, PostgreSQL with pgvector, is not installed")
    pytest.importorskip("psycopg", reason="the extra `servers` is not installed")
    pytest.importorskip("pgvector", reason="the extra `servers` is not installed")
    server = pgserver.get_server(str(tmp_path_factory.mktemp("pg")), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


def test_qdrant_holds_what_the_index_holds(folder, tmp_path):
    pytest.importorskip("qdrant_client", reason="the extra `servers` is not installed")
    address = f"qdrant:{tmp_path / 'q'}/photos"
    told = []
    recall = servers.send(Index.open(folder), address, lambda done, total: told.append((done, total)))
    assert recall.value == 1  # its in-process mode is exact
    assert told[-1] == (ROWS, ROWS)
    index = without_some(folder)
    assert servers.send(index, address).value == 1
    held = servers.Qdrant(address)
    try:
        assert held.client.count("photos", exact=True).count == ROWS - 50
        assert held.nearest(index.vectors([3])[0], 1) == index.paths([3])
        point = held.client.query_points("photos", query=index.vectors([3])[0].tolist(), limit=1).points[0]
        assert point.payload["year"] == 53
        assert point.payload["label"] is None
    finally:
        held.close()


def test_postgres_holds_what_the_index_holds(folder, postgres):
    address = f"{postgres}&table=my%20photos" if "?" in postgres else f"{postgres}?table=my%20photos"
    assert servers.send(Index.open(folder), address).value > 0.9
    index = without_some(folder)
    assert servers.send(index, address).value > 0.9
    held = servers.Postgres(address)
    try:
        from pgvector.psycopg import register_vector

        register_vector(held.connection)
        assert held.nearest(index.vectors([3])[0], 1) == index.paths([3])
        row = held._run("select label, columns from {table} where path = %s", index.paths([3])[0]).fetchone()
        assert row == (None, {"year": 53, "score": 0.5})
        assert held._run("select count(*) from {table}").fetchone() == (ROWS - 50,)
    finally:
        held.close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mysql://host/db", "give qdrant\\+http"),
        ("qdrant+http://localhost:6333", "give qdrant\\+http"),
        ("postgresql://me:secret@127.0.0.1:1/db", "me:\\*\\*\\*@127.0.0.1:1/db.* does not answer"),
        ("qdrant+http://127.0.0.1:1/photos", "look at the server"),
    ],
    ids=["unknown", "no-name", "no-postgres", "no-qdrant"],
)
def test_addresses_that_do_not_answer(folder, address, words):
    if "127" in address:
        pytest.importorskip("psycopg" if "sql" in address else "qdrant_client", reason="`servers` is missing")
    with pytest.raises(ValueError, match=words) as error:
        servers.send(Index.open(folder), address)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
