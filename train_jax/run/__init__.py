"""One training run: set-up, loop, epoch, evaluation."""
