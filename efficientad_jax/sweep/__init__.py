"""Sweeps: trainings of settings, categories and seeds, and a table of their metrics."""
