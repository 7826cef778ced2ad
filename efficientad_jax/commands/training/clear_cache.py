"""Removes the teacher features that sweeps keep on this machine's disk (docs/sweep.md).

    efficientad clear-cache   # of the user who runs it

Trainings that need the features compute them again.
"""

import argparse

from efficientad_jax.storage.feature_cache import clear_features, features_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no arguments."""


def run(options: argparse.Namespace) -> int:
    """Clears the cache."""
    print(f"{features_folder()}: {clear_features() / 1e9:.2f} GB removed")
    return 0
