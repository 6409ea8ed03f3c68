import numpy as np
import torch
from PIL import Image
from torchvision.models import resnet18
from torchvision.transforms import v2

model = resnet18()
model.load_state_dict(torch.load("out/photos/exported_models/exported_last.pt"))
model.fc = torch.nn.Identity()
model.eval()
normalise = v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
scale = v2.ToDtype(torch.float32, scale=True)
transform = v2.Compose([v2.ToImage(), v2.Resize((224, 224)), scale, normalise])


@torch.no_grad()
def embed(images):
    return model(torch.stack([transform(image) for image in images])).numpy()


print(embed([Image.open(path).convert("RGB") for path in ["a.jpg", "b.png"]]).shape)
print(embed(torch.rand(8, 3, 64, 64)).shape)
print(embed([Image.open("a.jpg").convert("RGB")]).shape)
print(embed(np.zeros((8, 64, 64, 3), np.uint8)).shape)
