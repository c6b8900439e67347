"""Several processes for one run, by torchrun, and one error where one of them fails.

python -m training.launch --processes 2 job.toml --out runs/mine
"""

import argparse
import logging
import os
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

from prm.errors import RungError

# How long torchrun may take to end the ranks that are left.
ENDED_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which rank of how many this process is, and which on its machine; torchrun says so."""

    index: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> "Place":
        """Of this process; alone where torchrun has not started it."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        index, count, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(index=index, count=count, local=local)


def fail(error: BaseException, place: Place) -> NoReturn:
    """End this rank with one line, and do not wait for anybody.

    Where all ranks fail alike the first tells it, and the others are ended before they do. What has
    only lost another rank waits for torchrun, which knows which of them was the first.
    """
    if isinstance(error, RungError):
        time.sleep(1.0 if place.index else 0.0)
        told = f"error: rank {place.index}: {error}" if place.index else f"error: {error}"
    else:
        time.sleep(ENDED_WITHIN_S)
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        told = (
            f"error: rank {place.index} lost another rank ({first_line}); --resume goes on from "
            "the last checkpoint"
        )
    print(told, file=sys.stderr, flush=True)
    os._exit(1)


def has_lost_another(error: Exception, place: Place) -> bool:
    """Whether this is what a rank hears when another one is gone."""
    words = ("gloo", "nccl", "connection closed", "connection reset")
    return place.count > 1 and any(word in str(error).lower() for word in words)


def main() -> None:
    """Start `--processes` ranks of `training.run` on this machine, with the other arguments."""
    parser = argparse.ArgumentParser(prog="python -m training.launch", description=__doc__)
    parser.add_argument("--processes", type=int, required=True)
    arguments, of_the_run = parser.parse_known_args()
    # What torchrun would set, and say so.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    # It reports a rank that fails at length; the rank itself has told why.
    logging.disable(logging.ERROR)
    command = ["--standalone", f"--nproc-per-node={arguments.processes}"]
    try:
        torchrun([*command, "--module", "training.run", *of_the_run])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(
                f"error: rank {rank} was ended by {failure.signal_name()}, and the run with it; "
                "--resume goes on from the last checkpoint",
                file=sys.stderr,
            )
        sys.exit(1)


if __name__ == "__main__":
    main()
