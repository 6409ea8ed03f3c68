from lightly.core import train_embedding_model

train_embedding_model(input_dir="photos/", trainer={"max_epochs": 2})
