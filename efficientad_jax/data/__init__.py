"""Datasets: decoding, tensorflow-datasets builders, loading."""
