"""Read and check configs; build the models that they name."""
