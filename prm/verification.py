"""One trajectory's way through a generative PRM: write, read, and again for the next turn.

GenPRM            step k: blocks of every sample → verdicts → mean; a sample's turn goes on
ThinkPRM prefix   chains over every prefix, all at once → verdicts → means
ThinkPRM verdicts chains over the whole → verdicts of those that judge every step once → means
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from prm.errors import InvalidInput
from prm.families.base import Read
from prm.families.genprm import YES_NO, GenPrm
from prm.families.texts import step_field
from prm.families.thinkprm import ThinkPrm, UnusableChain
from prm.families.verdicts import mean_logit, seed_of
from prm.scorer import BackendReply
from prm.tasks import all_or_none
from prm.types import Trajectory

EndedBy = Literal["stop", "eos", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Continue these ids once, by at most `max_tokens` tokens."""

    ids: tuple[int, ...]
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How all asks of a call are written. A text ends before the first of the `stop` strings.

    `top_k` 0 is all tokens.
    """

    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One continuation: its text without the stop string, and how many tokens were written.

    `ended_by`: a stop string, the end of the model's turn, or `max_tokens`.
    """

    text: str
    tokens: int
    ended_by: EndedBy


class VerdictModel(Protocol):
    """What is asked of whoever runs a generative PRM's model."""

    async def write(self, asks: Sequence[Ask], style: Style) -> list[Written]:
        """One continuation per ask, in order. Raises Unavailable."""
        ...

    async def read(self, reads: Sequence[Read]) -> BackendReply:
        """One output per read. Raises Unavailable."""
        ...


@dataclass(slots=True, kw_only=True)
class Cost:
    """What an item has cost; the fields of `ScoredTrajectory`."""

    scored_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    cut_samples: int = 0
    discarded_samples: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class _Draft:
    """One sample of a GenPRM turn: its blocks so far."""

    written: list[str] = field(default_factory=list)
    tokens: int = 0
    is_cut: bool = False


class Verification:
    """One item. `silent` is how many ids each step's verdict takes with nothing written."""

    def __init__(
        self,
        family: GenPrm | ThinkPrm,
        model: VerdictModel,
        trajectory: Trajectory,
        silent: Sequence[int],
    ) -> None:
        self.cost = Cost()
        self._family = family
        self._recipe = family.recipe
        self._model = model
        self._trajectory = trajectory
        self._silent = silent

    async def raws(self) -> list[float]:
        """The logit of every step. Raises InvalidInput for a step without a usable verdict."""
        match self._family:
            case GenPrm():
                return await self._conversation(self._family)
            case ThinkPrm(recipe=recipe) if recipe.step_scores == "prefix":
                return await self._prefixes(self._family)
            case ThinkPrm():
                return await self._chain(self._family)

    async def _conversation(self, genprm: GenPrm) -> list[float]:
        turns: list[str] = []
        raws = []
        for step in self._trajectory.steps:
            begun = await asyncio.to_thread(genprm.begun, self._trajectory, turns)
            # Every later verdict keeps its place.
            later = self._silent[-1] - self._silent[step.index]
            drafts = await self._blocks(genprm, begun, later)
            usable = [draft for draft in drafts if genprm.can_be_reread(draft.written)]
            self.cost.discarded_samples += len(drafts) - len(usable)
            if not usable:
                raise self._unusable(step.index, "they spell out control tokens")
            asked = [await asyncio.to_thread(genprm.judged, begun, d.written) for d in usable]
            logits = await self._verdicts(asked)
            raws.append(mean_logit(logits))
            label = YES_NO[0] if logits[0] >= 0 else YES_NO[1]
            turns.append(genprm.turn(step.index, usable[0].written, label))
        return raws

    async def _blocks(self, genprm: GenPrm, begun: tuple[int, ...], later: int) -> list[_Draft]:
        """All samples' blocks of one turn; a block that was cut is its sample's last.

        `later` tokens of the context are for other turns.
        """
        drafts = [_Draft() for _ in range(self._recipe.samples)]
        for number, block in enumerate(genprm.blocks):
            going = [draft for draft in drafts if not draft.is_cut]
            rooms = [genprm.room(begun, draft.written) - later for draft in going]
            asks = [
                self._ask(
                    genprm.continued(begun, draft.written),
                    drafts.index(draft),
                    min(self._recipe.max_tokens - draft.tokens, room),
                )
                for draft, room in zip(going, rooms, strict=True)
            ]
            pieces = await self._write(asks, rooms, (block.closing,))
            for draft, piece in zip(going, pieces, strict=True):
                draft.tokens += piece.tokens
                draft.is_cut = piece.ended_by != "stop"
                if number == 0 or not draft.is_cut:
                    draft.written.append(piece.text.split(block.tag)[0])
        self.cost.cut_samples += sum(draft.is_cut for draft in drafts)
        return drafts

    async def _prefixes(self, thinkprm: ThinkPrm) -> list[float]:
        steps = range(1, len(self._trajectory.steps) + 1)
        begun = {n: await asyncio.to_thread(thinkprm.begun, self._trajectory, n) for n in steps}
        chains = await all_or_none([self._chains(thinkprm, begun[n], n) for n in steps])
        asked = [
            await asyncio.to_thread(thinkprm.asked, begun[n], chain.text)
            for n, written in zip(steps, chains, strict=True)
            for chain in written
        ]
        self.cost.cut_samples += sum(c.ended_by == "length" for w in chains for c in w)
        logits = await self._verdicts(asked)
        samples = self._recipe.samples
        return [mean_logit(logits[at : at + samples]) for at in range(0, len(logits), samples)]

    async def _chain(self, thinkprm: ThinkPrm) -> list[float]:
        steps = len(self._trajectory.steps)
        begun = await asyncio.to_thread(thinkprm.begun, self._trajectory, steps)
        asked: list[tuple[int, ...]] = []
        failure = None
        for chain in await self._chains(thinkprm, begun, steps):
            self.cost.cut_samples += chain.ended_by == "length"
            try:
                asked += await asyncio.to_thread(thinkprm.placed, begun, chain.text, steps)
            except UnusableChain as error:
                self.cost.discarded_samples += 1
                failure = failure or error
        if not asked:
            assert failure is not None
            raise self._unusable(failure.step - 1, f"in the first of them, {failure}")
        logits = await self._verdicts(asked)
        return [mean_logit(logits[step::steps]) for step in range(steps)]

    async def _chains(
        self, thinkprm: ThinkPrm, begun: tuple[int, ...], steps: int
    ) -> list[Written]:
        """All samples' chains over the first `steps` steps."""
        room = thinkprm.room(begun)
        limit = min(self._recipe.max_tokens, room)
        asks = [self._ask(begun, sample, limit) for sample in range(self._recipe.samples)]
        return await self._write(asks, [room] * len(asks), thinkprm.stops(steps))

    def _ask(self, ids: tuple[int, ...], sample: int, max_tokens: int) -> Ask:
        return Ask(ids=ids, seed=seed_of(self._recipe, ids, sample), max_tokens=max_tokens)

    async def _write(
        self, asks: Sequence[Ask], rooms: Sequence[int], stop: tuple[str, ...]
    ) -> list[Written]:
        """Continuations that fit their rooms; where there is none for a token, an empty one."""
        possible = [ask for ask in asks if ask.max_tokens >= 1]
        recipe = self._recipe
        style = Style(
            temperature=recipe.temperature, top_p=recipe.top_p, top_k=recipe.top_k, stop=stop
        )
        found = iter(await self._model.write(possible, style) if possible else [])
        nothing = Written(text="", tokens=0, ended_by="length")
        written = [
            self._fitting(next(found), room) if ask.max_tokens >= 1 else nothing
            for ask, room in zip(asks, rooms, strict=True)
        ]
        self.cost.generated_tokens += sum(piece.tokens for piece in written)
        self.cost.scored_tokens += sum(map(len, {ask.ids for ask in possible}))
        return written

    def _fitting(self, piece: Written, room: int) -> Written:
        """The same, or cut to the tokens that there is room for when it is read again.

        Bytes at its end that make no character are left out: vLLM never hands them over.
        """
        piece = replace(piece, text=piece.text.rstrip("\ufffd"))
        text = self._family.shortened(piece.text, room)
        return piece if text == piece.text else replace(piece, text=text, ended_by="length")

    async def _verdicts(self, asked: Sequence[tuple[int, ...]]) -> list[float]:
        """The logit of the verdict after each of these ids."""
        for ids in asked:
            self._family.check_length(len(ids), "verified ")
        reads = [self._family.read(ids) for ids in asked]
        outputs = (await self._model.read(reads)).outputs
        cached = sum(output.cached_tokens for output in outputs)
        self.cost.cached_tokens += cached
        self.cost.scored_tokens += sum(map(len, asked)) - cached
        return [self._family.raw(output.values) for output in outputs]

    def _unusable(self, step: int, why: str) -> InvalidInput:
        samples = self._recipe.samples
        return InvalidInput(
            f"step {step} has no usable verdict: {samples} of {samples} samples were discarded; "
            f"{why}. A recipe with more samples or max_tokens may help",
            param=step_field(self._trajectory, step),
        )
