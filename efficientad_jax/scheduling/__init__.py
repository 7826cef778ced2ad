"""Runs lists of jobs: on a cluster of Ray, or one after another in this process."""
