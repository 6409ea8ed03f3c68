import lightly_train

lightly_train.pretrain(
    out="out/photos", data="photos/", model="torchvision/resnet18", method="simclr", epochs=2
)
