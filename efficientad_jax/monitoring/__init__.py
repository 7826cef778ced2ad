"""Watches whether a detector still sees images of the kind that it was made for."""
