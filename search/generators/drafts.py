"""Texts being written for the wants of a call, and where a stop string ends one."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from search.generator import EndedBy, GenerateParams, Want, Written
from search.types import Prefix

# Any server's seed has at least 32 bits, signed.
SEED_RANGE = 1 << 31
# A prime, so that places in neighbouring texts do not meet in one seed.
SEED_STRIDE = 1_000_003

Put = Callable[[Written], None]


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """A text being written: what was sampled behind the want's prefix so far.

    `seam` is where the text went on after its answer broke off.
    """

    want: Want
    seed: int
    limit: int
    prompt_tokens: int
    prefix_ids: tuple[int, ...] = ()
    text: str = ""
    ids: list[int] = field(default_factory=list)
    tokens: int = 0
    seam: int = 0
    is_written: bool = False

    @property
    def seed_here(self) -> int:
        """The seed of a request that writes on from here.

        One that starts in the middle of a text takes another: the same random numbers would make
        it repeat the choices at its beginning.
        """
        return (self.seed + SEED_STRIDE * self.tokens) % SEED_RANGE

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return max(0, self.limit - self.tokens)

    def restart(self) -> None:
        """Forget what was written."""
        self.text, self.ids, self.tokens, self.seam = "", [], 0, 0

    def end(
        self,
        ended_by: EndedBy,
        *,
        text: str | None = None,
        ids_known: bool = True,
        is_exact: bool = True,
    ) -> Written:
        """The continuation, with `text` in place of what came; without ids where they differ.

        Without `is_exact` they may: see `Prefix`.
        """
        self.is_written = True
        return Written(
            number=self.want.number,
            prefix=Prefix(
                text=self.want.prefix.text + (self.text if text is None else text),
                ids=self.prefix_ids + tuple(self.ids) if ids_known else (),
                is_exact=is_exact,
            ),
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            ended_by=ended_by,
        )


def find_stop(text: str, params: GenerateParams, start: int = 0) -> tuple[int, str] | None:
    """Where the earliest of the stop strings begins, and which; the shorter of two at one place."""
    stops = {*params.stop, *params.keep_stop}
    return min(((at, stop) for stop in stops if (at := text.find(stop, start)) >= 0), default=None)


def is_separator(stop: str, params: GenerateParams) -> bool:
    """Whether a stop string stays in the text."""
    return stop in params.keep_stop and stop not in params.stop


async def as_they_end(
    count: int, jobs: Sequence[Callable[[Put], Awaitable[None]]]
) -> AsyncGenerator[Written]:
    """What the jobs put, `count` in all. The first exception of a job is raised here.

    Closing the iterator ends the jobs.
    """
    written: asyncio.Queue[Written | Exception] = asyncio.Queue()

    async def run(job: Callable[[Put], Awaitable[None]]) -> None:
        try:
            await job(written.put_nowait)
        # Not swallowed: it is raised below.
        except Exception as error:
            written.put_nowait(error)

    tasks = [asyncio.create_task(run(job)) for job in jobs]
    try:
        for _ in range(count):
            piece = await written.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
