"""Paths and folders, on this machine and in object stores."""
