"""`python -m training.demo`: train the demonstration models from scratch and publish them.

Parsed first, imported after: `--help` answers without loading torch.
"""

import argparse
import os
from pathlib import Path


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m training.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("models"), help="root of the models")
    parser.add_argument("--version", default="1", help="what to publish them as (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="seconds, tiny, learns nothing")
    parser.add_argument(
        "--docs",
        type=Path,
        help="page whose figures are to be written anew, with a picture beside it",
    )
    arguments = parser.parse_args()
    # OpenMP's workers spin while they wait: beside another busy process, 40 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TQDM_DISABLE", "1")

    from dataclasses import replace

    from training.demonstration.picture import draw_curves
    from training.demonstration.report import insert_figures
    from training.demonstration.run import refuse_published, run
    from training.demonstration.settings import DemoSettings

    settings = DemoSettings.quick() if arguments.quick else DemoSettings()
    settings = replace(settings, seed=arguments.seed, threads=arguments.threads)
    try:
        refuse_published(arguments.out, arguments.version)
    except FileExistsError as error:
        parser.error(str(error))
    evaluation = run(settings, arguments.out, arguments.version, _command(arguments))
    if arguments.docs:
        page = arguments.docs.read_text(encoding="utf-8")
        arguments.docs.write_text(insert_figures(page, evaluation), encoding="utf-8")
        draw_curves(evaluation, arguments.docs.with_suffix(".svg"))


def _command(arguments: argparse.Namespace) -> str:
    quick = " --quick" if arguments.quick else ""
    return (
        f"python -m training.demo --out {arguments.out}{quick} "
        f"--seed {arguments.seed} --threads {arguments.threads}"
    )


if __name__ == "__main__":
    main()
