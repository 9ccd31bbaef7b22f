"""A run's folder: checkpoints, metrics, Weights & Biases, TensorBoard and the timeline."""
