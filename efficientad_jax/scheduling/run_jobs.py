"""Runs a list of jobs with Ray if it is installed, otherwise one after another."""

import importlib.util
from collections.abc import Sequence

import jax

from efficientad_jax.errors import InputError
from efficientad_jax.scheduling.job import Demand, Job, Tell, last_event


def run_jobs(
    jobs: Sequence[Job], tell: Tell, *, demand: Demand, address: str = ""
) -> dict[str, str]:
    """Runs all jobs; a job that fails does not stop the others.

    Args:
      jobs: with unique names.
      tell: called for each event of a job.
      demand: the devices of each job. Without Ray a job has those of this process.
      address: of a running Ray cluster, 'auto' for the one of this machine, '' for `RAY_ADDRESS`
        of the environment and without it for a new one on this machine.

    Returns:
      The errors of failed jobs, one line each, by name.

    Raises:
      StoppedError: Ctrl-C or SIGTERM was received; states are saved.
      InputError: there is no such cluster, or no machine of it has the devices.
    """
    if not jobs:
        return {}
    if importlib.util.find_spec("ray"):
        from efficientad_jax.scheduling.ray_cluster import run_on_ray

        return run_on_ray(jobs, tell, demand=demand, address=address)
    if address or demand != Demand():
        raise InputError(
            "--address and --*_per_training: need Ray, which is not installed; "
            "pip install 'efficientad-jax[ray]'"
        )
    failed = {}
    for job in jobs:
        event = last_event(job, lambda event, name=job.name: tell(name, event))
        tell(job.name, event)
        if event.stage == "failed":
            failed[job.name] = event.text
        # Each job compiles other programs, which would stay in memory.
        jax.clear_caches()
    return failed
