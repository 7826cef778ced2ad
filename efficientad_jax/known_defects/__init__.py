"""The use of a handful of known defects: to choose a score, never to train."""
