"""lightly's SimCLR for some minutes on a folder or archive, to compare with `omma pretrain --budget`.

    python benchmarks/minutes.py IMAGES --minutes 10

Composed as in lightly's documentation (its SimCLR example for PyTorch): SimCLRTransform at the images'
size, ResNet-18 without its last layer, a head 512-512-128, NT-Xent at its default temperature, SGD at .06,
batch 256, reshuffled every epoch, drop_last. The precision is that of fp32 and bf16 autocast which makes
more steps in ten seconds; loading workers share the cores. The clock starts before the first batch is read.
Evaluated as by `omma evaluate`: k-NN, k=20, T=.07, neighbours among the training images.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

from omma.data.sources.collection import open_images
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.split import train_test
from omma.evaluation import knn
from omma.evaluation.split import Split

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # lightly's own normalisation


class Views(Dataset):
    """Two views of each image."""

    def __init__(self, images: IndexedImages, size: int) -> None:
        self.images, self.transform = images, SimCLRTransform(input_size=size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.images.read(i)))


def network() -> nn.Module:
    """ResNet-18 without its last layer."""
    return nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten())


def endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def train(args: argparse.Namespace, images: IndexedImages, size: int) -> tuple[nn.Module, int, str]:
    """The trained backbone, its number of steps, and the faster precision."""
    torch.manual_seed(args.seed)
    end = time.monotonic() + args.minutes * 60
    backbone, head, criterion = network(), SimCLRProjectionHead(512, 512, 128), NTXentLoss()
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06)
    loader = DataLoader(Views(images, size), 256, shuffle=True, drop_last=True, num_workers=args.workers)
    source = endless(loader)

    def step(bf16: bool) -> None:
        one, two = next(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = criterion(head(backbone(one)), head(backbone(two)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    counts, steps = {}, 0
    for bf16 in (False, True):
        until, counts[bf16] = time.monotonic() + 10, 0
        while time.monotonic() < until:
            step(bf16)
            counts[bf16] += 1
        steps += counts[bf16]
    bf16 = counts[True] > counts[False]
    while time.monotonic() < end:
        step(bf16)
        steps += 1
    return backbone.eval(), steps, "bf16" if bf16 else "fp32"


@torch.inference_mode()
def features(backbone: nn.Module, images: IndexedImages, size: int) -> np.ndarray:
    features = []
    for start in range(0, len(images), 256):
        pixels = [
            np.asarray(Image.fromarray(images.read(i)).resize((size, size)))
            for i in range(start, min(start + 256, len(images)))
        ]
        x = torch.from_numpy(np.stack(pixels)).float() / 255
        x = (x - torch.tensor(MEAN)) / torch.tensor(STD)
        features.append(backbone(x.permute(0, 3, 1, 2)).float().numpy())
    return np.concatenate(features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = open_images(args.images)
    learned, accuracy, how = train_test(images)
    size = images.read(0).shape[0]
    train_part, test_part = images.subset(learned), images.subset(accuracy)
    torch.manual_seed(args.seed)
    before = network()
    trained, steps, precision = train(args, train_part, size)
    print(f"ResNet-18, {size} px, {how}; {steps:,} steps in {precision}")
    for name, backbone in (("trained", trained), ("untrained", before.eval())):
        vectors = [features(backbone, part, size) for part in (train_part, test_part)]
        data = Split(vectors[0], images.labels[learned], vectors[1], images.labels[accuracy])
        right = (knn.predict_each(data, [knn.HEADLINE])[knn.HEADLINE] == data.test_labels).mean()
        print(f"k-NN {name}: {100 * right:.1f}")


if __name__ == "__main__":
    main()
