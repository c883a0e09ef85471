"""Many hosts, one run: they find one another, agree, and end together when one is lost.

Every host runs the same command, and JAX's own runtime (`jax.distributed`) does the work between
them. It aborts a process whose host is missing or lost and does not say which; so before it starts
the hosts take a roll of their own, and keep it (`gptj.circle`).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.metadata
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from gptj.circle import LOST, Circle, arrive
from gptj.errors import UserError

__all__ = [
    "LOST",
    "HostsConfig",
    "agree",
    "barrier",
    "is_leader",
    "joined",
    "same_everywhere",
    "told",
]


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """The machines a run is on, where it is on more than one.

    SLURM and Cloud TPU tell by themselves, as does Kubernetes where the package `kubernetes` is
    installed, and Open MPI, since its version 5 all but the coordinator. Elsewhere give the first
    three.
    """

    coordinator: str | None = None
    """HOST:PORT of host 0: its name or address as the others reach it, and a free port there."""
    count: int | None = None
    """Hosts in all; 1 trains on this one alone, whatever started it."""
    index: int | None = None
    """Which of them this one is, counted from 0."""
    timeout: int = 300
    """Seconds to wait for all of them to arrive."""

    def __post_init__(self) -> None:
        for name in ("count", "timeout"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"hosts.{name}={value} must be at least 1")
        if self.index is not None and self.index not in range(self.count or self.index + 1):
            raise UserError(
                f"hosts.index={self.index} is not one of the hosts: count them from 0 to "
                "hosts.count - 1"
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise UserError(
                    f"hosts.coordinator={self.coordinator} is not HOST:PORT: give the name of "
                    "host 0 and a free port there, as in node1:8476"
                )


@dataclasses.dataclass(frozen=True)
class Place:
    """One host's place among the hosts."""

    coordinator: str
    count: int
    index: int
    devices: Sequence[int] | None = None
    """Which of the machine's devices are this process's; `None` for all."""


def place_of(config: HostsConfig) -> Place | None:
    """This host's place, as the flags say or what started it; `None` where it is alone.

    Raises:
      UserError: only some of the flags are given, or what started the hosts does not tell.
    """
    if config.count == 1:
        return None
    flags = {name: getattr(config, name) for name in ("coordinator", "count", "index")}
    given = [f"hosts.{name}" for name, value in flags.items() if value is not None]
    lacking = [f"hosts.{name}" for name, value in flags.items() if value is None]
    if not lacking:
        return Place(**flags)
    launcher = _launcher()
    if launcher and given in ([], ["hosts.coordinator"]):
        return _ask(launcher, config)
    if given:
        raise UserError(
            f"{' and '.join(given)} without {' and '.join(lacking)}: give all three on every "
            "host, or none where SLURM, Open MPI, Kubernetes or Cloud TPU starts the hosts"
        )
    return None


def _launcher() -> str | None:
    """What has evidently started more processes than this one."""
    # Not public: JAX offers only to find the hosts and connect at once.
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    def many(name: str) -> bool:
        value = os.environ.get(name, "")
        return value.isdecimal() and int(value) > 1

    if many("OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    if many("SLURM_NTASKS") and "SLURM_STEP_NODELIST" in os.environ:  # srun's, not the script's
        return "SLURM"
    if running_in_cloud_tpu_vm:
        return "Cloud TPU"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys():
        return "Kubernetes"
    return None


def _ask(launcher: str, config: HostsConfig) -> Place | None:
    """This host's place, as JAX finds it."""
    from jax._src.clusters import ClusterEnv

    address, reason = config.coordinator, ""
    count = index = devices = None
    try:
        with warnings.catch_warnings(action="ignore"):  # of a missing package; we say it below
            address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
                address, None, None, None, None, config.timeout
            )
    except Exception as error:  # whatever a cluster's own service may answer
        reason = f" ({' '.join(str(error).split())})"
    if launcher == "Open MPI" and count is None:  # since its version 5 JAX does not know it
        count, index = (int(os.environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "RANK"))
    if count == 1:
        return None
    if address is None or count is None or index is None:
        need = "" if launcher == "Open MPI" else ", --hosts.count and --hosts.index"
        if launcher == "Kubernetes" and not reason:
            reason = " (JAX asks Kubernetes with the package kubernetes, which is not installed)"
        raise UserError(
            f"{launcher} started this process, but does not tell it who the hosts are{reason}: "
            f"give --hosts.coordinator{need}, or --hosts.count 1 to train on this host alone"
        )
    return Place(address, count, index, devices)


@contextlib.contextmanager
def joined(config: HostsConfig) -> Iterator[None]:
    """Be one of the hosts that `config` says; where there is only one, nothing happens.

    Enter it before JAX computes anything. Within, the process ends with status `LOST` when
    another host is lost or stops.

    Raises:
      UserError: hosts did not all arrive in time (says which), or do not fit together.
    """
    global _circle
    place = place_of(config)
    if place is None:
        yield
        return
    assert _circle is None, "this process is one of the hosts already"
    _circle, service = arrive(place.coordinator, place.count, place.index, config.timeout)
    ours = not jax.distributed.is_initialized()  # as it is where Ray started the hosts
    try:
        same_everywhere({name: importlib.metadata.version(name) for name in ("gptj-jax", "jax")})
        if ours:
            _initialize(place, service)
        yield
        if ours:
            jax.distributed.shutdown()  # returns when every host is here
    except BaseException as error:
        _circle.fail(error)
        _abandon()
        raise
    else:
        _circle.close()
    finally:
        _circle = None


def _initialize(place: Place, service: str) -> None:
    """Start JAX's runtime, more patient than we are."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
    jax.distributed.initialize(
        service,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=100,
    )


def _abandon() -> None:
    """Leave JAX's runtime as it is: to shut it down, as happens at exit, waits for the others."""
    from jax._src import distributed

    state = distributed.global_state
    for part in (state.client, state.service):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))  # even its destructor waits
    state.client = state.service = None


def is_leader() -> bool:
    """Whether this is host 0, which writes whatever is written once, and speaks."""
    return _circle is None or _circle.index == 0


def agree(flag: bool) -> bool:
    """True on every host if `flag` is true on any. Like all below it waits for every host."""
    return flag if _circle is None else any(_circle.gather("agree", flag))


def barrier(name: str) -> None:
    """Return when every host is here."""
    if _circle is not None:
        _circle.gather(name)


def told(value: Any) -> Any:
    """On every host what host 0 has for `value`, which is of JSON's types."""
    if _circle is None:
        return value
    return _circle.gather("follow host 0", value if is_leader() else None)[0]


def same_everywhere(values: Mapping[str, Any]) -> None:
    """Refuse to go on where hosts were started differently. The values are of JSON's types.

    Raises:
      UserError: on every host; names the first key that differs, and a host where it does.
    """
    if _circle is None:
        return
    first, *others = everyone = _circle.gather("compare", dict(values))
    for key in sorted(set().union(*everyone)):
        for index, other in enumerate(others, 1):
            if first.get(key) != other.get(key):
                raise UserError(
                    f"{key} is {first.get(key)!r} on {_circle.label(0)} and {other.get(key)!r} "
                    f"on {_circle.label(index)}: start the same command on every host"
                )


_circle: Circle | None = None
"""The hosts this process is one of; `None` where it is alone."""
