"""PUAD, one more image score (Sugawara and Imamura, ICIP 2024): an option, see docs/recipes.md."""
