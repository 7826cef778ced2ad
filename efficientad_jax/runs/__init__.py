"""Services for long runs: work directory, checkpoints, logs, signals and processes."""
