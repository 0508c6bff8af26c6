"""Convolutions that are faster than XLA's on CPUs."""
