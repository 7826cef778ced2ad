"""Metrics of a test split, and the report that shows them."""
