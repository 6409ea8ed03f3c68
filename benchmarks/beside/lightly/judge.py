import numpy as np
import torch
from lightly.utils.benchmarking import LinearClassifier, knn_predict
from pytorch_lightning import Trainer
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

x, y = (torch.from_numpy(np.load(f"{name}.npy")) for name in ("features", "labels"))
test = torch.arange(len(y)) % 5 == 0
bank, queries = normalize(x[~test]), normalize(x[test])
voted = knn_predict(queries, bank.T, y[~test], num_classes=2, knn_k=20)[:, 0]
print("k-NN", float((voted == y[test]).float().mean()))
train = DataLoader(TensorDataset(x[~test], y[~test]), batch_size=32, shuffle=True)
probe = LinearClassifier(nn.Identity(), 32, feature_dim=x.shape[1], num_classes=2, topk=(1,))
trainer = Trainer(max_epochs=20)
trainer.fit(probe, train)
trainer.validate(probe, DataLoader(TensorDataset(x[test], y[test]), batch_size=32))
