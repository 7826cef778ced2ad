"""Detectors in one call: from images to a saved detector."""
