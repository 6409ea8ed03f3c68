import numpy as np
import torch
from PIL import Image

import timm

model = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))


@torch.no_grad()
def embed(images):
    return model(torch.stack([transform(image) for image in images])).numpy()


print(embed([Image.open(path).convert("RGB") for path in ["a.jpg", "b.png"]]).shape)
print(embed(torch.rand(8, 3, 64, 64)).shape)
print(embed([Image.open("a.jpg").convert("RGB")]).shape)
print(embed([Image.fromarray(image) for image in np.zeros((8, 64, 64, 3), np.uint8)]).shape)
