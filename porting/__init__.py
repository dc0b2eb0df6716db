"""Port TensorFlow Xception weights to PyTorch, and prove it layer by layer."""
