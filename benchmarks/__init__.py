"""Measured comparisons, a module a question: python -m benchmarks.run NAME."""
