"""What compose.code.yaml opens is what the sandbox for code answers needs: tried without an engine.

As the images run it: another user, no capability, no new privileges, and the seccomp profile.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.docker.files import DOCKER, ROOT
from training.grading.jail import missing_walls

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin")
# Refused by Docker's own profile to whoever lacks CAP_SYS_ADMIN.
BY_DEFAULT = ("unshare", "mount", "umount2", "setns", "pivot_root")

pytestmark = [
    pytest.mark.skipif(bool(missing_walls()), reason="; ".join(missing_walls())),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(not HEADER.is_file(), reason=f"no {HEADER} with the calls' numbers"),
    pytest.mark.skipif(
        PYTHON is None or shutil.which("setpriv") is None,
        reason="no Python that every user can run, or no setpriv",
    ),
]


def run_confined(program: str, refused: list[str]) -> dict[str, Any]:
    """The program's output, or why it is not run."""
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))
    done = subprocess.run(
        [
            *("setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--no-new-privs"),
            *("--bounding-set=-all", "--inh-caps=-all"),
            *(str(PYTHON), str(Path(__file__).with_name("confined.py"))),
            ",".join(numbers[name] for name in refused if name in numbers),
        ],
        input=program,
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if "Permission denied" in done.stderr or "No module named" in done.stderr:
        pytest.skip(f"another user cannot read {ROOT}")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def refused_by_our_profile() -> list[str]:
    """Of docker/seccomp.json."""
    profile = json.loads((DOCKER / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    (rule,) = profile["syscalls"]
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    names: list[str] = rule["names"]
    return names


def test_programs_run_under_the_profile_of_compose_code() -> None:
    told = run_confined("import os; print(os.getuid())", refused_by_our_profile())
    assert told == {"stdout": "1000\n"}


def test_under_dockers_own_profile_it_is_said_that_they_do_not() -> None:
    told = run_confined("print(1)", [*refused_by_our_profile(), *BY_DEFAULT])
    assert "unshare: Operation not permitted" in told["unavailable"]


def test_the_profile_refuses_what_reaches_beyond_a_container() -> None:
    refused = set(refused_by_our_profile())
    assert {"bpf", "kexec_load", "init_module", "open_by_handle_at", "setns", "ptrace"} <= refused
    assert not refused & {"unshare", "mount", "umount2", "pivot_root", "seccomp"}
