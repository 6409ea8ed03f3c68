"""Neighbours and maps over HTTP are those of the index and of omma.inspection."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from uploads import picture

from omma import weights
from omma.inspection.maps import maps_of
from omma.retrieval.manifest import IndexModel, Manifest
from omma.retrieval.writer import rows_of, writing
from omma.serving.lookup import Lookup
from omma.serving.maps import Maps

PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def index(run, tmp_path_factory):
    """An index of eight images, every other one labelled, with a column of floats of which one is NaN."""
    model = weights.load(run)
    vectors = model.embed([picture(i) for i in range(8)])
    columns = {
        "path": pa.array([f"folder/{i}.png" for i in range(8)]),
        "label": pa.array([None if i % 2 else "even" for i in range(8)], pa.string()),
    }
    depth = pa.table({"depth": [float("nan"), *map(float, range(1, 8))]})
    folder = tmp_path_factory.mktemp("index") / "i"
    manifest = Manifest(IndexModel("x", model.digest), model.encoder.dim, {})
    with writing(folder, manifest) as writer:
        writer.commit([rows_of(vectors, columns, depth)])
    return folder


@pytest.fixture
def client(run, index, engines, served):
    """A server with an index and maps."""
    engine = engines()
    made = served()
    made.service.lookup = Lookup(index, engine.model.digest, "x", torch.device("cpu"))
    made.service.maps = Maps(engine)
    return made


def test_an_image_is_its_own_nearest(client):
    answer = client.post("/search", content=picture(0), headers=PNG, params={"k": 3}).json()
    rows = answer["results"][0]["neighbours"]
    assert len(rows) == 3
    assert (rows[0]["path"], rows[0]["label"], rows[0]["depth"]) == ("folder/0.png", "even", None)
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-5)
    expected = client.service.lookup.index.search(client.service.engine.model.embed(picture(0)), 3)
    assert [row["similarity"] for row in rows] == pytest.approx(expected.similarities[0].tolist(), abs=1e-5)
    assert [row["path"] for row in rows] == [f"folder/{i}.png" for i in expected.indices[0]]


def test_conditions_filter_and_wrong_ones_are_refused(client):
    def ask(**options):
        files = {"images": ("a.png", picture(1))}
        return client.post("/search", files=files, data=options)

    answer = ask(where="label = 'even' and depth > 1", k="10")
    assert answer.status_code == 200, answer.text
    rows = answer.json()["results"][0]["neighbours"]
    assert sorted(row["path"] for row in rows) == ["folder/2.png", "folder/4.png", "folder/6.png"]
    assert ask(where="label = 'none'").json()["results"][0]["neighbours"] == []
    for wrong in ("lable = 'x'", "label = ", "__import__('os')", "(" * 5_000):
        answer = ask(where=wrong)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith("where")
    assert ask(k="0").status_code == ask(k="1001").status_code == 400


def test_without_an_index_there_is_no_search(served):
    answer = served().post("/search", content=picture(), headers=PNG)
    assert answer.status_code == 404
    assert "--index" in answer.json()["error"]


def test_an_index_of_another_model_is_refused(index):
    with pytest.raises(ValueError, match="has other weights"):
        Lookup(index, "0" * 64, "y", torch.device("cpu"))


# ---------------------------------------------------------------- maps
@pytest.mark.parametrize("what", ["occlusion", "rollout", "gradients"])
def test_maps_are_those_of_inspection(client, what):
    """After a prediction, too: what it leaves behind must not keep gradients from flowing."""
    assert client.post("/predict", content=picture(3), headers=PNG).status_code == 200
    params = {"what": what, "class": "dog"}
    answer = client.post("/explain", content=picture(3), headers=PNG, params={**params, "format": "npy"})
    found = np.load(io.BytesIO(answer.content))
    model = client.service.engine.model
    expected = maps_of(model, model.preprocess(picture(3)), what, "dog").astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    assert found.max() > 0
    answer = client.post("/explain", content=picture(3), headers=PNG, params=params).json()
    assert answer["what"] == what
    np.testing.assert_allclose(answer["results"][0]["map"], expected[0], rtol=1e-3, atol=1e-6)


def test_a_map_as_a_picture(client):
    answer = client.post("/explain", content=picture(3), headers=PNG, params={"format": "png"})
    assert answer.headers["content-type"] == "image/png"
    assert np.ptp(np.asarray(Image.open(io.BytesIO(answer.content)))) > 100
    files = [("images", ("a", picture(1))), ("images", ("b", picture(2)))]
    refused = client.post("/explain", files=files, data={"format": "png"})
    assert (refused.status_code, refused.json()["error"][:24]) == (400, "format=png: needs one im")


def test_wrong_kinds_and_classes_are_refused(client):
    for options, word in (
        ({"what": "x"}, "occlusion"),
        ({"class": "horse"}, "no such class"),
        ({"class": 3}, "text"),
    ):
        body = {"images": [__import__("base64").b64encode(picture()).decode()], **options}
        answer = client.post("/explain", json=body)
        assert answer.status_code == 400, answer.text
        assert word in answer.json()["error"]


def test_networks_without_attention_have_no_rollout(client):
    assert {"occlusion", "rollout", "attention"} <= set(client.get("/model").json()["maps"])
    assert client.get("/model").json()["index"] == 8


# ---------------------------------------------------------------- descriptions
def test_the_description_lists_all_routes_and_no_others(client):
    from omma.serving.app import PATHS

    document = client.get("/openapi.json").json()
    described = {(path, method.upper()) for path, each in document["paths"].items() for method in each}
    assert described == {(path, method) for path, method, _ in PATHS if not path.startswith("/page.")}
    json.dumps(document, allow_nan=False)
    page = client.get("/docs").text
    assert all(f"{method} {path}</code>" in page for path, method in described)
    assert "http://" not in page.replace("http://127.0.0.1", "")
    assert "https://" not in page


def test_metrics_are_prometheus_text(client):
    from prometheus_client.parser import text_string_to_metric_families

    client.post("/embed", content=picture(), headers=PNG)
    client.post("/embed", content=b"x", headers=PNG)
    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    requests = {
        (s.labels["path"], s.labels["status"]): s.value
        for s in families["omma_requests"].samples
        if "path" in s.labels and s.name.endswith("total")
    }
    assert requests["/embed", "200"] == 1
    assert requests["/embed", "422"] == 1
    ended = {
        s.labels["outcome"]: s.value
        for s in families["omma_images_ended"].samples
        if s.name.endswith("total")
    }
    assert ended == {"answered": 1, "refused": 1}
