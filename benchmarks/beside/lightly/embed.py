import numpy as np
import torch
from lightly.transforms.utils import IMAGENET_NORMALIZE
from network import build
from PIL import Image
from torch import nn
from torchvision.transforms import v2

network = build()
network.load_state_dict(torch.load("network.pt"))
encoder = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
scale = v2.ToDtype(torch.float32, scale=True)
resize, normalise = v2.Resize((64, 64)), v2.Normalize(**IMAGENET_NORMALIZE)
transform = v2.Compose([v2.ToImage(), resize, scale, normalise])


@torch.no_grad()
def embed(images):
    return encoder(torch.stack([transform(image) for image in images])).numpy()


print(embed([Image.open(path).convert("RGB") for path in ["a.jpg", "b.png"]]).shape)
print(embed(torch.rand(8, 3, 64, 64)).shape)
print(embed([Image.open("a.jpg").convert("RGB")]).shape)
print(embed(np.zeros((8, 64, 64, 3), np.uint8)).shape)
