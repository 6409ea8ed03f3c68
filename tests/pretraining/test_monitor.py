"""Images that health is read on are not trained on, wherever there are enough of them."""

import numpy as np
import pytest
import torch

import omma
from omma.core.protocols import BadImage, Clock, Features, Preprocess
from omma.data.batches import loader
from omma.data.sources import trained_on
from omma.data.sources.collection import ArrayImages
from omma.pretraining import monitor


@pytest.mark.parametrize(("n", "size"), [(2000, 100), (5000, 250), (50_000, 512)])
def test_images_are_held_out_of_training(n, size):
    rows = np.arange(n) * 3
    training, sample = monitor.hold_out(rows, seed=1)
    assert len(sample) == size
    np.testing.assert_array_equal(np.sort(np.concatenate([training, sample])), rows)
    assert (np.diff(training) > 0).all()
    assert (np.diff(sample) > 0).all()
    np.testing.assert_array_equal(monitor.hold_out(rows, seed=1)[1], sample)
    assert not np.array_equal(monitor.hold_out(rows, seed=2)[1], sample)


def test_of_few_images_all_are_trained_on():
    rows = np.arange(1999)
    training, sample = monitor.hold_out(rows, seed=1)
    np.testing.assert_array_equal(training, rows)
    assert len(np.unique(sample)) == 512


def test_a_run_reads_health_on_images_that_it_does_not_train_on(tmp_path, monkeypatch):
    """By the pixels: each image is of a colour of its own."""
    watched, trained = [], []
    begin, stream = monitor.Monitor.__post_init__, loader.stream

    def colours(images):
        return [tuple(images.read(i)[0, 0].tolist()) for i in range(len(images))]

    def watch(self):
        watched.append((colours(self.sample), colours(self.training)))
        begin(self)

    def train(images, *arguments, **options):
        trained.append(colours(images))
        return stream(images, *arguments, **options)

    monkeypatch.setattr(monitor.Monitor, "__post_init__", watch)
    monkeypatch.setattr(loader, "stream", train)
    colour = np.stack([np.arange(2000) // 256, np.arange(2000) % 256, np.zeros(2000)], 1).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=np.tile(colour[:, None, None], (1, 8, 8, 1)))
    omma.pretrain(
        str(tmp_path / "images.npz"),
        method="simclr",
        model="vit-n/4",
        image_size=8,
        steps=1,
        batch_size=4,
        device="cpu",
        workers=0,
        out=tmp_path / "run",
    )
    ((sample, bank),) = watched
    assert len(set(sample)) == 100
    for images in (bank, *trained):
        assert len(set(images)) == 1900
        assert not set(images) & set(sample)
    assert trained
    assert trained_on.read(tmp_path / "run").images == 1900


class Mean(torch.nn.Module):
    """Features are the means of an image's channels."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        return Features(self.one * images.mean((2, 3)), images, (1, 1))


def watching(pixels, unreadable=(), **options):
    class Holed(ArrayImages):
        def read(self, i, at_least=None):
            if self.path(i) in unreadable:
                raise BadImage("damaged")
            return super().read(i, at_least)

    images = Holed(pixels, labels=np.arange(len(pixels)) % 2)
    prepared = Preprocess(
        size=8, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return monitor.Monitor(images, images, prepared, 0, False, **options)


def read_twice(watch):
    for step in (0, 10):
        seen = watch.read(Mean(), Clock(step, 10, step / 10), [])
    return seen


NOISE = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


def test_images_that_cannot_be_read_are_in_no_reading():
    seen = read_twice(watching(NOISE, unreadable=("array[3]", "array[7]")))
    assert seen.reading.images == 38
    assert seen.knn is not None


def test_classes_that_are_the_groups_cannot_be_told_by_other_groups():
    """Labels are row % 2: folders that are both class and sequence would read 0 %, whatever was learned."""
    rows = np.arange(len(NOISE))
    assert read_twice(watching(NOISE, groups=rows % 4)).knn is not None
    assert read_twice(watching(NOISE, groups=rows % 2)).knn is None


def test_a_network_that_stays_as_it_is_has_learned_nothing():
    seen = read_twice(watching(NOISE))
    assert seen.verdict.state == "idle"
    assert seen.reading.neighbours_kept == 1
    assert seen.reading.view_auc_low == seen.reading.view_auc_high == 0
    assert seen.reading.epochs == 1


def test_too_few_images_or_equal_ones_are_not_called_a_collapse():
    for count in (1, 2, 3):
        text = read_twice(watching(NOISE[:count])).verdict.text
        assert text.startswith(f"cannot be judged: {count} image")
    assert "look the same" in read_twice(watching(NOISE[:1].repeat(40, 0))).verdict.text
