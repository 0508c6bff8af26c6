"""The trainer: from a config to a trained, evaluated and documented model."""
