"""Regions of an anomaly map: where in the image the defects are, in pixels."""
