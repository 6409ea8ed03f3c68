import lightly_train

classes = {0: "ants", 1: "bees"}
lightly_train.train_image_classification(
    out="out/species",
    data={"train": "labelled/train", "val": "labelled/val", "classes": classes},
    model="torchvision/resnet18",
    model_args={"backbone_weights": "out/photos/exported_models/exported_last.pt"},
    steps=8,
)
model = lightly_train.load_model("out/species/exported_models/exported_last.pt")
for path in ["a.jpg", "b.png"]:
    answer = model.predict(path)
    print(path, classes[int(answer["labels"][0])], float(answer["scores"][0]))
