"""Measures speed and memory: of this package, of its peers, and under load.

This file imports nothing, so that a peer's process can be started without JAX.
"""
