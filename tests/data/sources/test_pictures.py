"""What a program holds as a collection: lists, arrays, data sets, with the labels that they keep."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from omma.data.sources import collection
from omma.data.sources.held import collected
from omma.data.sources.pictures import pictures
from omma.data.sources.values import read_in

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


class Torchvision(Dataset):
    """As torchvision's: a picture and its class; targets and classes stand apart."""

    targets, classes = LABELS, ["a", "b", "c"]

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return Image.fromarray(PIXELS[i]), self.targets[i]


class Names:
    names = ("a", "b", "c")


class HuggingFace(Dataset):
    """As `datasets.Dataset`: rows are dictionaries, a column by its name, features with names of classes."""

    features = {"image": object(), "label": Names()}  # noqa: RUF012

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return LABELS if i == "label" else {"image": Image.fromarray(PIXELS[i]), "label": LABELS[i]}


HELD = {
    "array": lambda folder: PIXELS,
    "tensor, channels first": lambda folder: torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
    "list of arrays": lambda folder: list(PIXELS),
    "list of paths": lambda folder: [folder / f"{i}.png" for i in range(6)],
    "data set of tensors": lambda folder: TensorDataset(torch.from_numpy(PIXELS), torch.tensor(LABELS)),
    "torchvision": lambda folder: Torchvision(),
    "hugging face": lambda folder: HuggingFace(),
    "floats in [0, 1]": lambda folder: PIXELS / 255,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("files")
    for i in range(6):
        Image.fromarray(PIXELS[i]).save(out / f"{i}.png")
    return out


@pytest.mark.parametrize("kind", HELD)
def test_pixels_are_those_held(folder, kind):
    images = collection.opened(HELD[kind](folder))
    assert (len(images), images.channels) == (6, 3)
    assert np.allclose(np.stack([read_in(images, 255.0, i) for i in range(6)]), PIXELS, atol=1e-3)
    fifth = images.subset(np.array([4])).subset(np.array([0]))
    assert np.allclose(read_in(fifth, 255.0, 0), PIXELS[4], atol=1e-3)
    assert images.subset(np.array([4, 2])).path(1) == images.path(2)


@pytest.mark.parametrize("kind", ["torchvision", "hugging face"])
def test_labels_that_a_data_set_keeps(kind):
    images = collection.opened(HELD[kind](None))
    assert images.labels is not None
    assert (images.labels.tolist(), images.classes) == (LABELS, ("a", "b", "c"))
    assert images.subset(np.array([2, 0])).labels.tolist() == [2, 0]


def test_a_subset_keeps_its_own_labels():
    images = collected(Subset(Torchvision(), [5, 3]))
    assert images.labels.tolist() == [2, 0]
    assert np.array_equal(images.read(0), PIXELS[5])


def test_a_loaders_batches_are_single_pictures():
    loader = DataLoader(TensorDataset(torch.from_numpy(PIXELS), torch.tensor(LABELS)), batch_size=4)
    assert len(list(pictures(loader))) == 6


@pytest.mark.parametrize(
    ("held", "words"),
    [(3, "int: images are a path"), ([], "no images in it"), ([[1]], "none of the pictures can be read")],
    ids=["number", "nothing", "no pictures"],
)
def test_refused_in_a_line(held, words):
    with pytest.raises(ValueError, match=words) as error:
        collection.opened(held)
    assert "\n" not in str(error.value)


def test_grey_among_colour_becomes_colour():
    images = collected([PIXELS[0], PIXELS[1, :, :, 0]])
    assert images.channels == 3
    assert images.read(1).shape == (8, 10, 3)
