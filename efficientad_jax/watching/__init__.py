"""Runs a detector on the images that arrive in a folder or come from a camera."""
