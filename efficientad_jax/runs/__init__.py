"""What every long run needs: its folder, checkpoints, logs, signals, processes."""
