"""A detector behind HTTP: images are posted, scores and maps come back."""
