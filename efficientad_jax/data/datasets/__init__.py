"""The datasets, one a module, and what their builders share."""
