"""`python -m training.demonstration.problems`: problems with their answers, for `rung eval search`.

    {"problem": "Evaluate (3+4)*2-5", "answer": "9"}

With the defaults, the 500 test problems that the bundled models were measured on.
"""

import argparse
import json
import sys
from typing import get_args

from training.tasks import arithmetic
from training.tasks.base import Split


def main() -> None:
    """Read the command line and print one line of JSON per problem."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demonstration.problems", description=__doc__
    )
    parser.add_argument("--split", choices=get_args(Split), default="test")
    parser.add_argument("--count", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: 1)")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count {arguments.count}: ask for one problem at least")
    try:
        found = arithmetic.problems(arguments.seed, arguments.count, arguments.split)
    except ValueError as error:
        parser.error(str(error))
    for problem in found:
        sys.stdout.write(json.dumps({"problem": problem.text, "answer": problem.answer}) + "\n")


if __name__ == "__main__":
    main()
