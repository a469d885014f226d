"""The task: softmax regression in NumPy, on the 1797 digits that scikit-learn brings along."""

import numpy as np
from sklearn.datasets import load_digits

SIDE, CLASSES = 8, 10


def new_model():
    """Return the weights and biases that all nodes begin with."""
    return [np.zeros((SIDE * SIDE, CLASSES), np.float32), np.zeros(CLASSES, np.float32)]


def load_data(partition, partitions):
    """Return a node's images and labels for training, and those for evaluation, which are a fifth.

    Nodes are unlike one another: the last has as many times more images as there are nodes than the first, and half
    of a node's images are of few digits.
    """
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    few, mixed = np.array_split(order, 2)
    few = few[np.argsort(labels[few], kind="stable")]
    own = np.concatenate([part(half, partition, partitions) for half in (few, mixed)])
    own = np.random.default_rng(partition).permutation(own)
    test, train = np.split(own, [len(own) // 5])
    images = (images / 16).astype(np.float32)
    return (images[train], labels[train]), (images[test], labels[test])


def part(items, partition, partitions):
    """Return a node's part, in proportion to its number."""
    ends = np.cumsum(np.arange(partitions + 1)) * len(items) // (partitions * (partitions + 1) // 2)
    return items[ends[partition] : ends[partition + 1]]


def predict(model, images):
    """Return the probability of each digit."""
    weights, biases = model
    scores = images @ weights + biases
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def fit(model, images, labels, rate, steps):
    """Train in place; return the loss before the last step."""
    weights, biases = model
    for _ in range(steps):
        found = predict(model, images)
        error = (found - np.eye(CLASSES, dtype=np.float32)[labels]) / len(labels)
        weights -= rate * images.T @ error
        biases -= rate * error.sum(axis=0)
    return float(-np.log(found[np.arange(len(labels)), labels]).mean())


def test(model, images, labels):
    """Return the accuracy."""
    return float(np.mean(predict(model, images).argmax(axis=1) == labels))
