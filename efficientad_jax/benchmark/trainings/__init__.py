"""Trains this package and anomalib on the same images and compares the detectors."""
