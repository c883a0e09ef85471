"""Train on a Ray cluster: Ray's JaxTrainer starts the hosts, each of which runs `gptj train`.

    python examples/cluster/ray_train.py --workers 4 --gpus 8 --data /shared/data/mine \
        --model gpt-j-6b --out /shared/runs/mine --mesh.fsdp 8 --mesh.tensor 4

What is not for Ray goes to `gptj train`; data and out lie in a folder that all machines share.
When a worker is lost the others end, and Ray starts all of them again, up to --restarts times;
the run goes on from its last checkpoint. Needs `pip install gptj-jax[ray]`.

Checked: with Ray 2.60 and two workers of one machine's CPU; not with GPUs or TPUs.
"""

import argparse
import socket

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, collective, get_context
from ray.train.v2.jax import JaxTrainer


def host(config: dict[str, list[str]]) -> None:
    """One worker: tell `gptj train` which host it is."""
    from gptj.cli import main

    context = get_context()
    with socket.create_server(("", 0)) as any_free:
        mine = f"{ray.util.get_node_ip_address()}:{any_free.getsockname()[1]}"
    place = {
        "coordinator": collective.broadcast_from_rank_zero(mine),
        "count": context.get_world_size(),
        "index": context.get_world_rank(),
    }
    code = main(["train", *config["flags"], *(f"--hosts.{k}={v}" for k, v in place.items())])
    if code:
        raise RuntimeError(f"gptj train ended with {code} on host {place['index']}: see its log")


def run() -> None:
    """Ask Ray for the workers and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workers", type=int, required=True, help="hosts in all")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each; 0 for none")
    parser.add_argument("--topology", help="of a TPU slice, as 4x4, with --accelerator")
    parser.add_argument("--accelerator", help="kind of TPU, as TPU-V6E")
    parser.add_argument("--restarts", type=int, default=10)
    args, flags = parser.parse_known_args()
    scaling = ScalingConfig(
        num_workers=args.workers,
        use_gpu=args.gpus > 0,
        use_tpu=args.topology is not None,
        topology=args.topology,
        accelerator_type=args.accelerator,
        resources_per_worker={"GPU": args.gpus} if args.gpus else None,
    )
    JaxTrainer(
        host,
        train_loop_config={"flags": flags},
        scaling_config=scaling,
        run_config=RunConfig(failure_config=FailureConfig(max_failures=args.restarts)),
    ).fit()


if __name__ == "__main__":
    run()
