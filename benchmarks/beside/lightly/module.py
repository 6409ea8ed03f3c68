import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from network import build
from torch import nn

photos = LightlyDataset("photos/", transform=SimCLRTransform(input_size=64))
loader = torch.utils.data.DataLoader(photos, batch_size=16, shuffle=True, drop_last=True)
network = build()
head = SimCLRProjectionHead(32, 32, 128)
model = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
criterion = NTXentLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(2):
    for views, _, _ in loader:
        loss = criterion(model(views[0]), model(views[1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.save(network.state_dict(), "network.pt")
