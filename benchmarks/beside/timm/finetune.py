import torch
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2

import timm

model = timm.create_model("resnet18", pretrained=False, num_classes=2)
config = resolve_model_data_config(model)
labelled = create_dataset("", "labelled/", split="train")
device = torch.device("cpu")
loader = create_loader(
    labelled, batch_size=16, is_training=True, device=device, use_prefetcher=False, **config
)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4)
for _ in range(2):
    for images, labels in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
model.eval()
transform = create_transform(**config)
names = list(labelled.reader.class_to_idx)
for path in ["a.jpg", "b.png"]:
    image = transform(Image.open(path).convert("RGB"))
    with torch.no_grad():
        probabilities = model(image.unsqueeze(0)).softmax(1)[0]
    print(path, names[probabilities.argmax()], float(probabilities.max()))
