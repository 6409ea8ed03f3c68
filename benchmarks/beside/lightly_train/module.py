from network import build
from torch import nn

import lightly_train


class Wrapper(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.pool = network, nn.AdaptiveAvgPool2d(1)

    def get_model(self):
        return self.network

    def forward_features(self, x):
        return {"features": self.network(x)}

    def forward_pool(self, x):
        return {"pooled_features": self.pool(x["features"])}

    def feature_dim(self):
        return 32


lightly_train.pretrain(
    out="out/network", data="photos/", model=Wrapper(build()), method="simclr", epochs=2
)
