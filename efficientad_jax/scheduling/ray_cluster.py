"""Runs a list of jobs on a Ray cluster: each in a worker process that ends with the job.

Ray places the jobs, starts a job again on another machine if its worker or its machine dies, and
shows them in its dashboard. A training that starts again resumes from its last checkpoint.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, TaskCancelledError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from efficientad_jax.errors import InputError, StoppedError, first_line
from efficientad_jax.runs.signals import interruption
from efficientad_jax.scheduling.job import Demand, Event, Job, Tell, last_event
from efficientad_jax.storage.cache import keep_compiled_programs

_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 10.0
# How often a job reports its steps.
_REPORT_SECONDS = 1.0
# How long jobs may take to save their states after a signal. Then they are killed, and resume from
# their last checkpoints.
_STOP_SECONDS = 20.0
# How often a job starts again after its worker died, or was killed for lack of memory.
_RETRIES = 3
# A JAX process takes this part of a GPU by default.
_MEMORY_FRACTION = 0.75


def run_on_ray(jobs: Sequence[Job], tell: Tell, *, demand: Demand, address: str) -> dict[str, str]:
    """See `run_jobs`."""
    _connect(address)
    try:
        return _run(jobs, tell, _options(demand))
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
    # Ray would make GPUs invisible to workers that asked for none, and says so at each start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address not in ("", "auto"):  # Ray itself waits for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        # 'local' is a new cluster. Without an address Ray would join any that runs on this machine.
        chosen = address or os.environ.get("RAY_ADDRESS") or "local"
        ray.init(chosen, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--address={address}: no such Ray cluster ({first_line(error)}); start it with "
            "`ray start`, or leave --address out for one on this machine"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has set its own


def _options(demand: Demand) -> dict[str, Any]:
    """Options of the jobs' tasks: devices, and the environment of the worker processes.

    Raises:
      InputError: no machine of the cluster has the devices.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus, tpus = demand.gpus, demand.tpus
    if gpus is None:
        gpus = 1 if any(machine.get("GPU") for machine in machines) else 0
    if tpus is None:
        tpus = 1 if not gpus and any(machine.get("TPU") for machine in machines) else 0
    with_devices = [m for m in machines if m.get("GPU", 0) >= gpus and m.get("TPU", 0) >= tpus]
    cpus = demand.cpus
    if cpus is None:
        cpus = 1 if gpus or tpus else int(min(m["CPU"] for m in with_devices if m.get("CPU")))
    if not any(machine.get("CPU", 0) >= cpus for machine in with_devices):
        found = "; ".join(
            ", ".join(f"{machine.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU", "TPU"))
            for machine in machines
        )
        raise InputError(
            f"a training of {cpus} CPU, {gpus:g} GPU, {tpus} TPU: no machine of the cluster has "
            f"that much, found: {found}; lower --cpus_per_training, --gpus_per_training or "
            "--tpus_per_training"
        )
    variables = {n: v for n, v in os.environ.items() if n.startswith(("JAX_", "XLA_"))}
    if not gpus and not tpus:
        variables["NPROC"] = str(cpus)  # the number of threads of XLA
    if 0 < gpus < 1:
        fraction = f"{_MEMORY_FRACTION * gpus:.3f}"
        variables.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", fraction)
    return {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "resources": {"TPU": tpus} if tpus else {},
        "max_calls": 1,  # the worker process ends after the job, which frees the memory of a GPU
        "max_retries": _RETRIES,
        "runtime_env": {"env_vars": variables},
    }


def _run(jobs: Sequence[Job], tell: Tell, options: dict[str, Any]) -> dict[str, str]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    task = ray.remote(**options)(_in_worker)
    names = {task.remote(job, events, os.getcwd()): job.name for job in jobs}
    failed: dict[str, str] = {}
    killed_at = float("inf")
    with interruption() as interrupted:
        while names:
            ended, _ = ray.wait(list(names), timeout=_POLL_SECONDS)
            for name, event in events.get_nowait_batch(events.size()):
                tell(name, event)
            for result in ended:
                name = names.pop(result)
                event = _last_event(result, stopped=interrupted() != 0)
                tell(name, event)
                if event.stage == "failed":
                    failed[name] = event.text
            if interrupted() and killed_at == float("inf"):
                killed_at = time.monotonic() + _STOP_SECONDS
                for result in reversed(names):  # those that wait first, so that none of them starts
                    ray.cancel(result)  # Ctrl-C in the worker, which saves its state
            elif time.monotonic() > killed_at:
                for result in names:
                    ray.cancel(result, force=True)
                break
        if interrupted():
            raise StoppedError(interrupted())
    return failed


def _last_event(result: "ray.ObjectRef[Event]", *, stopped: bool) -> Event:
    try:
        return ray.get(result)
    except TaskCancelledError:
        return Event("stopped")
    except RayError as error:  # its worker died too often
        return Event("stopped") if stopped else Event("failed", text=first_line(error))


def _in_worker(job: Job, events: Queue, folder: str) -> Event:
    """Does a job in the folder of the command, on whose paths the job relies."""
    os.chdir(folder)
    reported, stage = 0.0, ""

    def report(event: Event) -> None:
        nonlocal reported, stage
        # The first event of a training says where it begins, however soon it comes.
        is_soon = time.monotonic() - reported < _REPORT_SECONDS
        if event.stage == stage == "training" and is_soon:
            return
        reported, stage = time.monotonic(), event.stage
        # Not `put`, which waits: Ray starts another job on the cores of one that waits.
        actor: Any = events.actor
        actor.put_nowait.remote((job.name, event))

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: report(Event("note", text=record.getMessage()))
    logging.getLogger().addHandler(handler)
    keep_compiled_programs()
    try:
        return last_event(job, report)
    except StoppedError as stopped:
        return Event("stopped", stopped.step or 0)
