"""Synthetic defects: good images are changed as defects would change them."""
