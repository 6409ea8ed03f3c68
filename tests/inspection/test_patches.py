"""Strongest patches and their views, neighbours and reconstructions: closed forms, and what is said."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from omma import backbones
from omma.core.protocols import Backbone, Features, Preprocess, Reconstruction
from omma.data.sources.collection import open_images
from omma.inspection import neighbours, patches, reconstruct
from omma.inspection.maps import subject_of
from omma.weights import Model

SIZE, PATCH = 16, 4
CHANNELS = Preprocess(
    size=SIZE, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
)


class Means(Backbone):
    """A feature is the mean of a colour over a patch, through a ReLU6 times 3."""

    name, dim, patch, channels, drops_tokens = "means", 3, PATCH, 3, False

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.act = nn.ReLU6(inplace=True)
        self.built_from = {}

    def tokenize(self, images, keep=None):
        tokens = nn.functional.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)
        return self.act(self.scale * 12 * tokens) / 2

    def encode(self, tokens, grid, keep=None):
        return Features(tokens.mean(1), tokens, grid)


def spots(folder, places):
    """Black images with a red spot that fills patch `place` (row by row of 4 x 4), of brightness given."""
    folder.mkdir(parents=True)
    for number, (place, value) in enumerate(places):
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        row, column = divmod(place, SIZE // PATCH)
        pixels[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH, 0] = value
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return open_images(folder)


def model(encoder=None):
    return Model(Means().eval() if encoder is None else encoder, CHANNELS)


def vit():
    torch.manual_seed(0)
    return Model(backbones.build(name="vit-n/4", image_size=SIZE, channels=3), CHANNELS)


# ---------------------------------------------------------------- which patches
def test_the_strongest_patch_of_each_image_is_found_where_it_lies(tmp_path):
    images = spots(tmp_path / "a", [(5, 140), (15, 160), (0, 150), (10, 130)])
    found = patches.strongest(model().encoder, images, CHANNELS, [0], k=3)
    assert found.images.tolist() == [[1, 2, 0]]
    assert found.positions.tolist() == [[15, 0, 5]]
    assert found.values[0].tolist() == pytest.approx(
        [6 * (2 * v / 255 - 1) for v in (160, 150, 140)], abs=1e-5
    )
    assert patches.strongest(model().encoder, images, CHANNELS, [0], k=9).images.shape == (1, 4)


def test_where_activations_saturate_the_surroundings_decide(tmp_path):
    """250 and 255 both end at ReLU6's 6; the first has a brighter neighbour."""
    images = spots(tmp_path / "a", [(5, 255), (5, 250)])
    pixels = images.read(1)
    pixels[4:8, 8:12, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    found = patches.strongest(model().encoder, open_images(tmp_path / "a"), CHANNELS, [0])
    assert found.images.tolist() == [[1, 0]]
    assert found.values.tolist() == [[3.0, 3.0]]


def test_without_a_choice_the_features_that_vary_most_are_taken(tmp_path):
    images = spots(tmp_path / "a", [(5, 255), (2, 200)])
    found = patches.strongest(model().encoder, images, CHANNELS, None, most=1)
    assert found.features.tolist() == [0]  # red; the other two colours are 0 everywhere


def test_batches_do_not_change_what_is_found(tmp_path):
    images = spots(tmp_path / "a", [(k % 16, 130 + k) for k in range(40)])
    network = vit().encoder
    whole = patches.strongest(network, images, CHANNELS, [1, 7], k=5)
    direct = network(
        torch.stack([torch.from_numpy(images.read(i)).permute(2, 0, 1) for i in range(40)]) / 127.5 - 1
    )
    for line, feature in enumerate((1, 7)):
        values = direct.patches[:, :, feature].amax(1).detach().numpy()
        assert whole.values[line].tolist() == pytest.approx(np.sort(values)[::-1][:5].tolist(), abs=1e-4)


def test_a_feature_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="feature 3: the model has features 0 to 2"):
        patches.strongest(model().encoder, spots(tmp_path / "a", [(1, 200)]), CHANNELS, [3])


# ---------------------------------------------------------------- views
def test_the_guided_gradient_passes_what_is_positive_both_ways_through_saturation_too():
    """y = 2 relu6(a) - relu6(b): of a, where above 0, the gradient is 2; of b it is cut."""
    net = nn.Sequential(nn.ReLU6(inplace=True))
    a = torch.tensor([-1.0, 2.0, 9.0], requires_grad=True)
    with patches.guided(net):
        y = net(a * 1) * torch.tensor([2.0, 2.0, 2.0])
        (up,) = torch.autograd.grad(y.sum(), a)
        (down,) = torch.autograd.grad((net(a * 1) * -1).sum(), a)
    assert up.tolist() == [0.0, 2.0, 2.0]
    assert down.tolist() == [0.0, 0.0, 0.0]
    assert net[0].inplace
    (plain,) = torch.autograd.grad(net(a * 1).sum(), a)
    assert plain.tolist() == [0.0, 1.0, 0.0]  # all is as before


def test_a_view_lies_in_its_patch(tmp_path):
    pixels = torch.full((1, 3, SIZE, SIZE), 0.3)
    seen = patches.view(model().encoder, pixels, np.array([1]), np.array([6]))
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[4:8, 8:12] = True
    assert (seen[0, 1][inside] > 0).all()
    assert (seen[0, 1][~inside] == 0).all()
    assert (seen[0, [0, 2]] == 0).all()
    assert patches.is_relu(model().encoder)
    assert not patches.is_relu(vit().encoder)


def test_gradient_times_input_is_what_other_networks_have():
    network, pixels = vit().encoder, torch.randn(1, 3, SIZE, SIZE)
    seen = patches.view(network, pixels, np.array([1]), np.array([6]))
    step = 1e-3 * torch.randn_like(pixels)
    slope = (patches.gradient(network, pixels, np.array([1]), np.array([6])) * step).sum()
    with torch.no_grad():
        change = (network(pixels + step).patches - network(pixels).patches)[0, 6, 1]
    assert float(slope) == pytest.approx(float(change), abs=2e-5, rel=0.05)
    assert torch.equal(seen, patches.gradient(network, pixels, np.array([1]), np.array([6])) * pixels)


def test_a_crop_is_the_smallest_square_that_holds_half():
    weights = np.zeros((32, 32))
    weights[10:12, 20:22] = 1
    assert patches.box(weights, (11, 21), 4) == (9, 19, 13, 23)
    weights[0, 0] = 100  # far away: the square must grow
    top, left, bottom, _ = patches.box(weights, (11, 21), 4)
    assert (top, left) == (0, 0) or bottom - top == 32
    assert patches.box(np.ones((32, 32)), (0, 0), 8)[:2] == (0, 0)


@pytest.mark.parametrize(
    ("alike", "says"),
    [
        ([0.1, 0.2], "passes the randomisation check: rank correlation 0.15"),
        ([0.6, 0.5, np.nan], "does not pass the randomisation check: rank correlation 0.55"),
        ([np.nan, np.nan, 0.1], "cannot be checked against random weights"),
    ],
)
def test_the_note_says_what_the_check_found(alike, says):
    assert says in patches.randomisation("guided gradients", np.array(alike))


def test_an_empty_view_is_no_pass():
    a = torch.randn(2, 3, 4, 4)
    b = torch.stack([a[0], torch.zeros(3, 4, 4)])
    found = patches.likeness(a, b)
    assert found[0] == pytest.approx(1)
    assert np.isnan(found[1])


def test_the_kind_shows_patches_above_views(tmp_path):
    images = spots(tmp_path / "a", [(5, 140), (15, 160), (0, 150)])
    subject, _ = subject_of(
        vit(), torch.zeros(1, 3, SIZE, SIZE), gallery=images, options={"features": (0, 2)}
    )
    made = patches.KIND.explain(subject)
    assert [len(row) for row in made.shows[0].rows] == [3, 3, 3, 3]
    assert made.arrays["patches"].shape == (2, 3)
    assert "gradient times input" in made.caption
    assert "randomisation check" in made.notes[0] or "cannot be checked" in made.notes[0]
    without, _ = subject_of(vit(), torch.zeros(1, 3, SIZE, SIZE))
    assert "--gallery" in str(patches.KIND.lacks(without))


# ---------------------------------------------------------------- neighbours
def test_neighbours_are_by_cosine_without_the_image_itself():
    base = np.array([[1.0, 0], [0, 1], [2, 1], [1, 0.1]], np.float32)
    found = neighbours.near(base[:2], base, 2, own=np.array([0, 1]))
    assert found.rows.tolist() == [[3, 2], [2, 3]]
    assert found.similarities[0, 1] == pytest.approx(2 / 5**0.5)
    other = neighbours.near(np.array([[1.0, 0]], np.float32), base, 9)
    assert other.rows.tolist() == [[0, 3, 2, 1]]
    mixed = neighbours.near(base[:2], base, 3, own=np.array([0, -1]))
    assert mixed.rows[0].tolist() == [3, 2, 1]
    assert mixed.rows[1, 0] == 1


def test_cosines_are_written_so_that_they_differ():
    assert neighbours.decimals(np.array([[0.91, 0.88], [0.7, 0.6]])) == 2
    assert neighbours.decimals(np.array([[0.9991, 0.9978], [0.7, 0.6]])) == 3
    assert neighbours.decimals(np.array([[0.99991, 0.99988]])) == 5
    assert neighbours.decimals(np.ones((2, 3))) == 2  # equal in truth


def test_neighbours_are_named_marked_and_known_by_their_paths(tmp_path):
    for name in ("cat", "dog"):
        spots(tmp_path / "all" / name, [(3, 200 + 5 * (name == "dog")), (9, 180)])
    images = open_images(tmp_path / "all")
    net = vit()
    pixels = net.preprocess([images.read(0)])
    subject, _ = subject_of(net, pixels, paths=(images.path(0),), gallery=images)
    made = neighbours.KIND.explain(subject)
    query, *near = made.shows[0].rows[0]
    assert (query.text, query.path, len(near)) == ("cat", "cat/0.png", 3)
    assert {cell.path for cell in near} == {"cat/1.png", "dog/0.png", "dog/1.png"}
    assert {cell.path: cell.mark for cell in near}["cat/1.png"] is True
    assert {cell.path: cell.mark for cell in near}["dog/0.png"] is False
    assert "Green outline" in made.caption
    lone, _ = subject_of(net, pixels, gallery=images.subset(np.array([0])))
    assert "two or more images" in str(neighbours.KIND.lacks(lone))


# ---------------------------------------------------------------- reconstructions
class Half:
    """A method that sees the left half and predicts black."""

    def reconstruct(self, images, key):
        hidden = torch.zeros(len(images), SIZE, SIZE, dtype=torch.bool)
        hidden[:, :, SIZE // 2 :] = True
        return Reconstruction(torch.full_like(images, -1.0), hidden, "Half is hidden.")


def test_reconstructions_show_what_was_seen():
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    subject, _ = subject_of(vit(), pixels, options={"method": Half()})
    made = reconstruct.KIND.explain(subject)
    assert made.caption == "Half is hidden."
    assert made.shows[0].heads == ("original", "seen", "predicted")
    original, seen, predicted = made.shows[0].rows[1]
    assert original.values == pytest.approx(0.5)
    assert np.isnan(seen.values[:, SIZE // 2 :]).all()
    assert seen.values[:, : SIZE // 2] == pytest.approx(0.5)
    assert predicted.values == pytest.approx(0)
    none, _ = subject_of(vit(), pixels)
    assert "give such a run's folder" in str(reconstruct.KIND.lacks(none))
