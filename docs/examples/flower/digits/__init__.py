"""Softmax regression on handwritten digits, federated with Flower."""
