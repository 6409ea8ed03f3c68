import copy

import numpy as np
import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform
from lightly.utils.scheduler import cosine_schedule
from network import build
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import Compose, ToPILImage

images = torch.from_numpy(np.load("photos.npy"))
transform = Compose([ToPILImage(), DINOTransform(global_crop_size=64, local_crop_size=32)])
loader = DataLoader(
    images,
    batch_size=16,
    shuffle=True,
    drop_last=True,
    collate_fn=lambda rows: default_collate([transform(row) for row in rows]),
)
network = build()
student = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
student_head = DINOProjectionHead(32, 512, 64, 2048, freeze_last_layer=1)
teacher, teacher_head = copy.deepcopy(student), DINOProjectionHead(32, 512, 64, 2048)
deactivate_requires_grad(teacher)
deactivate_requires_grad(teacher_head)
criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=1)
optimizer = torch.optim.AdamW([*student.parameters(), *student_head.parameters()], lr=1e-3)
for epoch in range(2):
    momentum = cosine_schedule(epoch, 2, 0.996, 1)
    for views in loader:
        update_momentum(student, teacher, m=momentum)
        update_momentum(student_head, teacher_head, m=momentum)
        targets = [teacher_head(teacher(view)) for view in views[:2]]
        predictions = [student_head(student(view)) for view in views]
        loss = criterion(targets, predictions, epoch=epoch)
        loss.backward()
        student_head.cancel_last_layer_gradients(current_epoch=epoch)
        optimizer.step()
        optimizer.zero_grad()
torch.save(teacher[0].state_dict(), "network.pt")
