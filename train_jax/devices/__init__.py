"""Devices, processes and compilation; folders on this machine."""
