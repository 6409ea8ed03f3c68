import torch
from lightly.data import LightlyDataset
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.benchmarking import FinetuneClassifier
from network import build
from PIL import Image
from pytorch_lightning import Trainer
from torch import nn
from torchvision import transforms

normalise = transforms.Normalize(**IMAGENET_NORMALIZE)
crop, flip = transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip()
augment = transforms.Compose([crop, flip, transforms.ToTensor(), normalise])
labelled = LightlyDataset("labelled/train/", transform=augment)
loader = torch.utils.data.DataLoader(labelled, batch_size=16, shuffle=True)
network = build()
network.load_state_dict(torch.load("network.pt"))
encoder = nn.Sequential(network, nn.AdaptiveAvgPool2d(1))
model = FinetuneClassifier(encoder, 16, feature_dim=32, num_classes=2, topk=(1,))
Trainer(max_epochs=2).fit(model, loader)
model.eval()
resize = transforms.Resize((64, 64))
transform = transforms.Compose([resize, transforms.ToTensor(), normalise])
for path in ["a.jpg", "b.png"]:
    image = transform(Image.open(path).convert("RGB"))
    with torch.no_grad():
        probabilities = model(image.unsqueeze(0)).softmax(1)[0]
    print(path, labelled.dataset.classes[probabilities.argmax()], float(probabilities.max()))
