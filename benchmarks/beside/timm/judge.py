import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

x, y = np.load("features.npy"), np.load("labels.npy")
train, test, train_labels, test_labels = train_test_split(x, y, test_size=0.2, stratify=y)
linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
for judge in (KNeighborsClassifier(20, metric="cosine"), linear):
    print(judge.fit(train, train_labels).score(test, test_labels))
