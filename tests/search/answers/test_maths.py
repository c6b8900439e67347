"""Answers compared by mathematics in real worker processes: verdicts, hostile answers, endings."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prm.errors import Unavailable
from search.answers import ExactAnswers, MathAnswers, MathRules
from search.answers.lease import WorkerLost
from search.answers.pool import WorkerPool

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def maths() -> AsyncIterator[MathAnswers]:
    async with MathAnswers(deadline_s=1.0, group_s=6.0) as answers:
        yield answers


def workers() -> list[int]:
    """The process ids of our nurseries and workers, also of those that lost their parent."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            # Ended ones that are not yet waited for have no command line.
            if b"search.answers.worker" in command:
                found[int(folder.name)] = parent
    # Those of servers that run beside these tests have servers for parents.
    roots = {pid for pid, parent in found.items() if parent in (1, os.getpid())}
    return [pid for pid, parent in found.items() if pid in roots or parent in roots]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "½"),
        (r"\frac{\sqrt{3}}{2}", "√3/2"),
        (r"\frac{\pi}{3}", "pi/3"),
        ("x^2", "x²"),
        ("(x+1)^2", "x^2+2x+1"),
        ("5", "x = 5"),
        (r"\text{Evelyn}", "evelyn"),
        ("12", "12 apples"),
        (r"28\%", "28 percent"),
        ("1, 2, 3", "3, 1, 2"),
        (r"\left(3,\frac{\pi}{2}\right)", r"(3, 0.5\pi)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"),
        (r"\infty", "oo"),
        ("e^3", "exp(3)"),
        ("1000.99", "1.000,99".replace(".", "")),
        (r"\$5", "5"),
        ("6 - 5i", "-5i + 6"),
    ],
)
async def test_the_same_answer_is_equal_however_written(
    maths: MathAnswers, gold: str, answer: str
) -> None:
    assert await maths.is_equal(gold, answer) == "equal"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/2", "1/3"),
        ("Paris", "Pairs"),
        ("(1, 2)", "(2, 1)"),
        ("x+1", "y+1"),
        ("1, 2", "1, 2, 3"),
        ("2", "-2"),
        ("0.000000001", "0.000000002"),
        ("[1, 2]", "(1, 2)"),
        ("x = 1", "y = 1"),
        ("6 - 5i", "6 + 5i"),
        ("yes", "no"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ],
)
async def test_another_answer_is_different(maths: MathAnswers, gold: str, answer: str) -> None:
    assert await maths.is_equal(gold, answer) == "different"


async def test_rules_say_what_counts() -> None:
    pool = WorkerPool(workers=1)
    rounded = MathAnswers(MathRules(float_rounding=2), pool=pool)
    ordered = MathAnswers(MathRules(ordered=True), pool=pool)
    try:
        assert await rounded.is_equal(r"\frac{1}{3}", "0.33") == "equal"
        assert await MathAnswers(pool=pool).is_equal(r"\frac{1}{3}", "0.33") == "different"
        assert await ordered.is_equal("4, 10", "10, 4") == "different"
    finally:
        await pool.aclose()


async def test_groups_are_named_by_their_first_answer(maths: MathAnswers) -> None:
    answers = ["0.5", "2", r"\frac{1}{2}", "Paris", "2.0", "$0.5$", "paris", "x=2"]
    assert await maths.group(answers) == [0, 1, 0, 3, 1, 0, 3, 1]
    assert await maths.group([]) == []
    assert await ExactAnswers().group(answers) == [0, 1, 2, 3, 1, 0, 6, 7]


async def test_sixty_four_distinct_answers_take_less_than_a_second(maths: MathAnswers) -> None:
    answers = [rf"\frac{{{n}}}{{17}}" for n in range(32)] + [
        f"{n} + \\sqrt{{{n}}}" for n in range(32)
    ]
    started = time.monotonic()
    groups = await maths.group(answers * 8)
    # 0/17 is 0 + √0; and 17/17 and 1 + √1 differ.
    assert len(set(groups)) == 63
    assert time.monotonic() - started < 3  # 0.4 s on an idle machine


HOSTILE = [
    "9^{9^{9^{9}}}",
    "9**9**9**9",
    "10^{100000}",
    r"\sqrt{" * 500 + "2" + "}" * 500,
    "(" * 2000 + "1" + ")" * 2000,
    r"\frac{1}{" * 300 + "2" + "}" * 300,
    "factorial(10**9)",
    "100000000!",
    r"\sum_{k=1}^{10^9} \frac{1}{k!}",
    r"\int_0^1 x^{x^{x^x}} dx",
    r"\boxed{" * 500,
    "[" * 3000,
    "-" * 3000 + "1",
    "x^{100000}-1",
    r"\left(" * 1000,
    "1" * 4000,
    "\x00\ud800".encode("utf-8", "replace").decode(),
    "__import__('os').system('touch /tmp/escaped')",
    "().__class__.__bases__[0].__subclasses__()",
]


async def test_hostile_answers_neither_hang_nor_group_nor_stop_the_others(
    maths: MathAnswers,
) -> None:
    for answer in HOSTILE:
        started = time.monotonic()
        assert await maths.is_equal("12", answer) != "equal", answer[:40]
        assert time.monotonic() - started < 8, answer[:40]
    assert not Path("/tmp/escaped").exists()
    groups = await maths.group(["1/2", HOSTILE[0], "0.5", HOSTILE[1], "50/100"])
    assert groups == [0, 1, 0, 3, 0]
    assert maths.undecided > 0


async def test_what_was_undecided_once_costs_no_second_deadline(maths: MathAnswers) -> None:
    assert await maths.is_equal("3", "7**7**7**7") == "undecided"
    started = time.monotonic()
    assert await maths.is_equal("4", "7**7**7**7") == "undecided"
    assert time.monotonic() - started < 0.5


async def test_memory_is_bounded() -> None:
    async with MathAnswers(workers=1, memory_mb=64, deadline_s=20, group_s=20) as answers:
        assert await answers.is_equal("1", "2**(2**33)") == "undecided"
        assert await answers.is_equal("1", "2/2") == "equal"


async def test_workers_are_never_more_than_asked_for_and_none_is_left() -> None:
    before = set(workers())
    async with MathAnswers(workers=2) as answers:
        await asyncio.gather(*(answers.is_equal(f"{n}/7", f"{2 * n}/14") for n in range(1, 12)))
        # Two workers and their nursery.
        assert len(set(workers()) - before) == 3
    assert set(workers()) <= before


async def test_a_caller_that_leaves_frees_its_worker() -> None:
    async with MathAnswers(workers=1, deadline_s=60, group_s=60) as answers:
        task = asyncio.create_task(answers.is_equal("1", "9**9**9**9"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            assert await answers.is_equal("1/2", "0.5") == "equal"


async def test_a_worker_that_is_killed_from_outside_is_replaced() -> None:
    before = set(workers())
    async with MathAnswers(workers=1, deadline_s=30, group_s=30) as answers:
        nursery, worker = sorted(set(workers()) - before)
        task = asyncio.create_task(answers.is_equal("1", "9**9**9**9"))
        await asyncio.sleep(0.3)
        os.kill(worker, signal.SIGKILL)
        assert await task == "undecided"
        assert await answers.is_equal("1/2", "0.5") == "equal"
        os.kill(nursery, signal.SIGKILL)
        assert await answers.is_equal("1/4", "0.25") == "equal"
    assert set(workers()) <= before


async def test_begun_early_it_makes_nobody_wait() -> None:
    before = set(workers())
    answers = MathAnswers(workers=1)
    answers.begin()
    answers.begin()
    async with asyncio.timeout(30):
        while len(set(workers()) - before) < 2:
            await asyncio.sleep(0.05)
    begun = set(workers())
    assert await answers.is_equal("1/2", "0.5") == "equal"
    assert set(workers()) == begun
    await answers.aclose()
    assert set(workers()) <= before


@pytest.mark.parametrize("after_s", [0, 0.01, 0.2])
async def test_one_that_is_closed_while_it_starts_is_gone_at_once(after_s: float) -> None:
    before = set(workers())
    answers = MathAnswers(workers=2)
    answers.begin()
    await asyncio.sleep(after_s)
    started = time.monotonic()
    await answers.aclose()
    # It takes more than half a second to start.
    assert time.monotonic() - started < 0.5
    assert set(workers()) <= before
    with pytest.raises(Unavailable, match="closed"):
        await answers.is_equal("1/3", "2/3")


async def test_a_closed_checker_says_so() -> None:
    answers = MathAnswers()
    await answers.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await answers.is_equal("1/3", "2/3")
    # What is written the same needs no process.
    assert await answers.is_equal("1", "1.0") == "equal"


async def test_who_waits_for_a_worker_is_told_of_the_end() -> None:
    answers = MathAnswers(workers=1, deadline_s=60, group_s=60)
    tasks = [asyncio.create_task(answers.is_equal(f"{n}", "9**9**9**9")) for n in range(4)]
    await asyncio.sleep(2)
    await answers.aclose()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [Unavailable] * 4


async def test_a_worker_s_last_words_are_not_the_next_request_s() -> None:
    pool = WorkerPool(workers=1)
    rules = {"float_rounding": 6, "strict": True, "relations_as_sets": False, "ordered": False}
    base = {"others": ["1"], "rules": rules, "cpu_s": 5}
    try:
        async with pool.worker() as lease:
            with pytest.raises(WorkerLost):
                async for _ in lease.ask({"answer": "9**9**9**9", **base}, silence_s=0.3):
                    pass
        async with pool.worker() as lease:
            replies = [reply async for reply in lease.ask({"answer": "2/2", **base}, silence_s=5)]
        assert replies[-1] == {"first": 0}
    finally:
        await pool.aclose()
