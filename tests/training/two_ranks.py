"""What torchrun starts twice for `test_distributed.py`: several jobs, one after the other.

python -m torch.distributed.run --nproc-per-node=2 -m tests.training.two_ranks FOLDER

FOLDER/NAME.json is run to FOLDER/NAME; one that is called cut… is stopped behind its step 3, copied
to FOLDER/NAME-kept, and goes on. A folder that is there goes on, too.
"""

import os
import shutil
import sys
from pathlib import Path

from training.launch import Place
from training.ranks import Ranks
from training.run import run_job
from training.spec import TrainingJob


class Stopped(Exception):
    pass


def stop(step: int, told: dict[str, float]) -> None:
    if step == 3:
        raise Stopped


def run(path: Path, ranks: Ranks) -> None:
    job, out = TrainingJob.model_validate_json(path.read_text()), path.with_suffix("")
    resume = out.exists()
    ranks.wait()
    if path.stem.startswith("cut"):
        try:
            run_job(job, out, ranks=ranks, watch=stop)
        except Stopped:
            if ranks.index == 0:
                shutil.copytree(out, out.with_name(f"{out.name}-kept"))
        ranks.wait()
        resume = True
    run_job(job, out, resume=resume, ranks=ranks)


def main() -> None:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    from training.distributed import torchrun

    with torchrun(Place.here(), "cpu") as ranks:
        for path in sorted(Path(sys.argv[1]).glob("*.json")):
            run(path, ranks)


if __name__ == "__main__":
    main()
