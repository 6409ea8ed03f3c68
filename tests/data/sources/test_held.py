"""Data sets and pictures of a program as indexed collections: labels in items, errors, identity."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from omma.core.protocols import BadImage
from omma.data.sources import collection
from omma.data.sources.indexed import IndexedImages
from omma.pretraining.data import open_source
from omma.pretraining.request import Request
from omma.weights.export import real_images

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 9, 7, 3), dtype=np.uint8)


class Pairs(Dataset):
    """Items are (picture, label) and nothing else is known."""

    def __init__(self, labels, noise=False):
        self.labels, self.noise = labels, noise

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        if self.labels[i] == "broken":
            raise OSError("the disk is gone")
        shift = torch.randint(0, 99, ()).item() if self.noise else 0
        return Image.fromarray(PIXELS[i] + np.uint8(shift)), self.labels[i]


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        ([2, 0, 2, 0], ("0", "2"), [1, 0, 1, 0]),
        (["b", "a", "b", "a"], ("a", "b"), [1, 0, 1, 0]),
        ([torch.tensor(1), torch.tensor(0)], ("0", "1"), [1, 0]),
    ],
    ids=["numbers", "texts", "tensors"],
)
def test_labels_in_items(labels, classes, codes):
    images = collection.opened(Pairs(labels))
    assert images.classes == classes
    assert images.labels.tolist() == codes


def test_an_item_that_raises_is_a_bad_image():
    images = collection.opened(Pairs(["a", "broken", "b", "a"]))
    assert images.labels.tolist() == [0, -1, 1, 0]
    with pytest.raises(BadImage, match="OSError: the disk is gone"):
        images.read(1)


def test_messages_name_what_a_program_holds_by_its_type():
    picture = Image.new("RGB", (8, 8))
    found = [
        Pairs([0, 1]),
        collection.opened(PIXELS),
        PIXELS,
        torch.zeros(2, 3, 8, 8),
        [picture],
        picture,
        "a.zip",
    ]
    names = ["Pairs", "array", "ndarray", "Tensor", "list", "Image", "a.zip"]
    assert [*map(collection.named, found)] == names


def test_an_export_is_compared_on_images_of_a_program():
    assert len(real_images.open_for(None, Pairs([0, 1]))) == 2


def test_a_random_transform_is_told_and_the_fingerprint_stays():
    first, again = (collection.indexed(Pairs([0, 1] * 4, noise=True)) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert any("leave its random transforms out" in note for note in first.notes)
    assert not collection.indexed(Pairs([0, 1] * 4)).notes


@pytest.mark.parametrize(
    "make",
    [
        lambda values: values,
        lambda values: list(values),
        lambda values: TensorDataset(torch.from_numpy(values), torch.arange(len(values))),
    ],
    ids=["array", "list", "data set"],
)
def test_the_fingerprint_follows_the_values(make):
    other = PIXELS.copy()
    other[3, 2, 1] ^= 1
    first, again, changed = (collection.indexed(make(each)) for each in (PIXELS, PIXELS.copy(), other))
    assert first.fingerprint == again.fingerprint != changed.fingerprint


def test_shapes_of_arrays():
    grey = collection.indexed(np.zeros((5, 12, 11), np.uint8))
    planes = collection.indexed(torch.zeros(5, 6, 12, 11))
    assert (len(grey), grey.channels, len(planes), planes.channels) == (5, 1, 5, 6)
    assert len(collection.indexed(PIXELS[0])) == len(collection.indexed(torch.zeros(3, 40, 40))) == 1


def test_workers_get_a_copy():
    images = pickle.loads(pickle.dumps(collection.indexed(Pairs([0, 1, 2]))))
    assert isinstance(images, IndexedImages)
    assert np.array_equal(images.read(2), PIXELS[2])


class Hub(Dataset):
    """As `datasets.Dataset`, with a second column of images before and a column of a table."""

    class Features(dict):
        def to_dict(self):
            return {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}

    features = Features(
        mask=type("Image", (), {})(), img=type("Image", (), {})(), label=object(), site=object()
    )
    column_names = ("label", "site")
    _fingerprint = "abc"

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if isinstance(i, slice):
            return pa.table({"label": [0, 1] * 4, "site": ["x", "y"] * 4})
        return {"mask": None, "img": Image.fromarray(PIXELS[i]), "label": i % 2, "site": "xy"[i % 2]}

    def remove_columns(self, names):
        assert names == ["mask", "img"]
        return self

    def with_format(self, kind):
        assert kind == "arrow"
        return self


def test_columns_of_hugging_face():
    images = collection.opened(Hub())
    assert (images.classes, images.labels.tolist()) == (("a", "b"), [0, 1] * 4)
    assert images.columns["site"].to_pylist() == ["x", "y"] * 4
    assert np.array_equal(images.read(5), PIXELS[5])


@pytest.mark.parametrize("held", [PIXELS, list(PIXELS), Pairs([0, 1] * 4)], ids=["array", "list", "data set"])
def test_pretraining_takes_them(held):
    images = open_source(Request(held, method="simclr"))
    assert len(images) == 8
    assert np.array_equal(images.read(3), PIXELS[3])


def test_a_network_in_place_of_a_name_is_refused():
    with pytest.raises(ValueError, match=r"model is a Linear: give a name .*own_network"):
        Request(PIXELS, model=torch.nn.Linear(2, 2))


def test_a_dictionary_is_refused_with_what_to_give():
    with pytest.raises(ValueError, match=r"give one of its parts, such as images\['train'\]"):
        collection.opened({"train": Pairs([0, 1])})
