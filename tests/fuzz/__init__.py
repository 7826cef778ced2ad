"""Coverage-guided fuzzing, outside the usual run of the tests."""
