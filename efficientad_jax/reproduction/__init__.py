"""Reproduces the tables of the paper: plans and runs trainings, and compares the results."""
