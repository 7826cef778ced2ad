"""A detector that looks at what a folder or a camera brings."""
