"""A Ray cluster: how it is reached, and work that is done on whichever of its nodes are there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from gptj.errors import UserError

AUTO = "auto"
"""The cluster that this machine is of, or else a new one on it."""


def connect(address: str = AUTO) -> None:
    """Join a cluster.

    Raises:
      UserError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'gptj-jax[ray]'") from error
    check_address(address)
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ValueError as error:
        raise UserError(f"{address} is no address of a Ray cluster: give HOST:PORT") from error
    except ConnectionError as error:
        if address != AUTO:
            raise UserError(f"no Ray cluster answers at {address}: {error}") from error
        ray.init(log_to_driver=False, logging_level=logging.ERROR)


def check_address(address: str) -> None:
    """See that an address may be one.

    Raises:
      UserError: it cannot.
    """
    if address == AUTO:
        return
    if os.path.exists(address):
        raise UserError(
            f"{address} lies on this machine and is no address of a Ray cluster: give the cluster "
            f"of this machine as --ray {AUTO}, another as --ray HOST:PORT"
        )
    if ":" not in address:
        raise UserError(f"{address} is no address of a Ray cluster: give HOST:PORT")


def _check_reachable(address: str) -> None:
    """See that somebody answers where a cluster should be: Ray would go on asking for minutes.

    Raises:
      UserError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}): check the address"
        ) from None


def each(address: str, work: Callable[[int], None], numbers: Sequence[int]) -> None:
    """Do the work of every number on a cluster, by Ray Data.

    What a lost node had is done by another one, so work may be done twice.

    Raises:
      UserError: the work does, or no cluster answers.
      OSError: the work does, or the cluster is lost.
    """
    connect(address)
    import ray
    from ray.exceptions import RayError, RayTaskError

    def do(row: dict[str, Any]) -> dict[str, Any]:
        os.environ["RAYON_NUM_THREADS"] = "1"  # of which it takes one, as Ray counts
        said, is_mistake = "", False
        try:
            work(row["item"])
        except (UserError, OSError) as error:  # raised, it would come wrapped twice and pages long
            said, is_mistake = str(error), isinstance(error, UserError)
        return {**row, "said": said, "is_mistake": is_mistake}

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        data = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
        for row in data.map(do).iter_rows():
            if row["said"]:
                raise (UserError if row["is_mistake"] else OSError)(row["said"])
    except RayTaskError:
        raise
    except RayError as error:
        raise ConnectionError(f"the Ray cluster was lost: {error}") from error
    finally:
        ray.shutdown()
