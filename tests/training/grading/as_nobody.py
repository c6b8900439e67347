"""`python as_nobody.py PROGRAM…`: runs programs in the jail as a user without any privilege.

Must be started as root. Python itself may lie where only root can go, so it is shown elsewhere, in
a mount namespace of this process. Prints a JSON line per program.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

_NOBODY = 65534
_ROOT = Path(__file__).parents[3]


def run_as_nobody(*programs: str) -> subprocess.CompletedProcess[str]:
    """This file, with these programs, run by root and then by nobody."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        script = (
            f"mount --make-rprivate / && mount --bind {sys.base_prefix} {folder} && exec setpriv "
            f"--reuid={_NOBODY} --regid={_NOBODY} --clear-groups {folder}/bin/python3 -B "
            f'{__file__} "$@"'
        )
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *programs],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(_ROOT)},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )


async def _main(programs: list[str]) -> None:
    from training.grading.jail import Jail, JailLimits

    for program in programs:
        result = await Jail(JailLimits(wall_s=8.0, cpu_s=2)).run(program)
        print(json.dumps({"uid": os.getuid()} | asdict(result)))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
