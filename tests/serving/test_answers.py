"""Answers over HTTP are those of `omma predict` and `omma embed`, bit for bit."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from uploads import picture

import omma
from omma.core.protocols import Features


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several kinds: sizes, grey, EXIF's turn, 16 bits; in the order of their names."""
    place = tmp_path_factory.mktemp("images")
    for i in range(10):
        (place / f"{i}.png").write_bytes(picture(i, height=33 + 7 * i))
    for i, kind in enumerate(("JPEG", "WEBP", "BMP", "TIFF")):
        (place / f"kind{i}.{kind.lower()}").write_bytes(picture(20 + i, kind, 90, 70))
    return place


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def tables(request, run, folder, tmp_path_factory):
    """What the commands write for these images, by precision."""
    out, options = tmp_path_factory.mktemp("tables"), {"device": "cpu", "precision": request.param}
    omma.embed(run, folder, out / "e.parquet", **options)
    omma.predict(run, folder, out / "p.parquet", top=3, **options)
    return request.param, pq.read_table(out / "e.parquet"), pq.read_table(out / "p.parquet").to_pylist()


def files(folder, names):
    return [("images", (name, (folder / name).read_bytes())) for name in names]


def test_many_at_once_equal_the_commands(served, tables, folder):
    """Requests of one to four images, from threads, so that batches mix them."""
    precision, embedded, predicted = tables
    client = served(precision, wait=0.02)
    names = embedded["path"].to_pylist()
    vectors = np.stack(embedded["vector"].to_numpy())
    groups = [names[i : i + 1 + i % 4] for i in range(len(names))]

    def ask(group):
        answer = client.post("/embed", files=files(folder, group), params={"format": "npy"})
        assert answer.status_code == 200, answer.text
        rows = client.post("/predict", files=files(folder, group), data={"top": "3"}).json()["results"]
        return np.load(io.BytesIO(answer.content)), rows

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, groups))
    expected = {row["path"]: {k: v for k, v in row.items() if k != "path"} for row in predicted}
    for group, (found, rows) in zip(groups, answers):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, vectors[[names.index(name) for name in group]])
        assert [row.pop("name") for row in rows] == group
        assert rows == [expected[name] for name in group]
    assert client.service.metrics._sum("omma_batch_images_count") < 2 * len(groups)  # they were batched


def test_all_forms_of_a_body_are_one(served, folder):
    data = (folder / "3.png").read_bytes()
    text = base64.b64encode(data).decode()
    client = served()
    answers = [
        client.post("/embed", files={"images": ("3.png", data)}),
        client.post("/embed", content=data, headers={"content-type": "image/png"}),
        client.post("/embed", json={"images": [{"name": "3.png", "data": text}]}),
        client.post("/embed", json={"images": ["data:image/png;base64," + text]}),
    ]
    assert [each.status_code for each in answers] == [200] * 4
    rows = [each.json()["results"][0] for each in answers]
    assert [row["name"] for row in rows] == ["3.png", "image 1", "3.png", "image 1"]
    assert all(row["vector"] == rows[0]["vector"] for row in rows)
    assert answers[0].json()["dim"] == len(rows[0]["vector"])


def test_predict_abstains_below_the_threshold(served, engines, folder):
    client = served()
    answer = client.post("/predict", files=files(folder, ["0.png"])).json()
    assert answer["threshold"] == engines().unsure.threshold
    row = answer["results"][0]
    assert row["abstain"] is (row["probability"] < answer["threshold"])
    assert set(row) == {"name", "class", "probability", "runner_up", "runner_up_probability", "abstain"}


def test_batches_are_filled_up_to_sizes_with_the_same_bits(engines):
    """A network whose answers depend on the batch's size, as sums of products do, gets some sizes alone."""

    class Depends(torch.nn.Module):
        def forward(self, x):
            return Features(x[:, :, 0, 0] + (len(x) < 5), x.flatten(2).mT, (32, 32))

    engine = replace(engines(), network=Depends(), classifier=None)
    assert engine._steady_sizes(16, 16) == (8, 16)
    assert engine._steady_sizes(16, 12) == (8, 12)
    assert engine._steady_sizes(16, 4) == ()
    engine = replace(engine, sizes=(8, 16))
    image = torch.randn(3, 32, 32)
    lone, many = engine([image])[0], engine([image] * 9)
    assert len(many) == 9
    np.testing.assert_array_equal(lone.vector, image[:, 0, 0])
    np.testing.assert_array_equal(many[8].vector, lone.vector)


def test_the_page_of_a_model_says_what_it_is(served):
    facts = served().get("/model").json()
    assert facts["classes"] == ["cat", "dog", "a/b"]
    assert facts["calibrated"] is True
    assert facts["same_as_commands"] is True
    assert (facts["precision"], facts["device"], facts["image_size"]) == ("fp32", "cpu", 32)
