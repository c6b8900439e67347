"""Who writes rollouts: the policy that trains, in this process, from the weights it has now.

Or a server that is given them: `training.vllm_writer`.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from prm.chat import ChatTokenizer
from prm.engine.sampler import Draft, Sampler, SamplingParams
from prm.errors import InvalidInput
from training.data import Example, encode_problem
from training.models import TrainedLM
from training.rollout_batch import Written
from training.spec import Rollouts
from training.types import Problem

OnDone = Callable[[int], None]


class Writer(Protocol):
    """Writes groups of rollouts, ungraded.

    `is_exact`: its log-probs are the trainer's, up to rounding. They are those of temperature 1.
    With several ranks each writes its share of the problems.
    """

    @property
    def is_exact(self) -> bool: ...

    def write(
        self, problems: Sequence[Problem], *, seed: str, policy_step: int, per_problem: int
    ) -> list[list[Written]]:
        """`per_problem` responses to each problem, in order; the same for the same seed.

        `policy_step`: how many optimizer steps the policy has behind it now.
        """
        ...


class InProcessWriter:
    """Samples with the engine's own sampler from the trainer's own tensors.

    Log-probs come with the samples and are the trainer's up to rounding, so that at temperature 1
    no forward is spent on what the policy was when it wrote. On a CPU a packed copy of the body's
    linear weights is made for each call, where its layers are known (`prm/engine/fused.py`): a
    forward of a few dozen tokens is then two to four times as fast.
    """

    def __init__(
        self,
        policy: TrainedLM,
        tokenizer: ChatTokenizer,
        settings: Rollouts,
        *,
        max_tokens: int,
        on_done: OnDone = lambda count: None,
    ) -> None:
        self._policy = policy
        self._tokenizer = tokenizer
        self._params = SamplingParams(temperature=settings.temperature, max_tokens=max_tokens)
        self._max_batch = settings.max_batch
        self._on_done = on_done

    @property
    def is_exact(self) -> bool:
        """See `Writer`: a trainer in bfloat16 rounds where the sampler, in float32, does not."""
        return self._policy.reading.precision == "float32"

    def write(
        self, problems: Sequence[Problem], *, seed: str, policy_step: int, per_problem: int
    ) -> list[list[Written]]:
        """See `Writer.write`. Raises InvalidInput for a problem that leaves no room to answer."""
        prompts = prompts_of(self._tokenizer, problems, self._policy.engine.context_limit)
        numbers = self._policy.ranks.share(range(len(problems)))
        drafts = [
            Draft(prompt=prompts[number], params=self._params, seed=seed_of(seed, number, sample))
            for number in numbers
            for sample in range(per_problem)
        ]
        self._fill(drafts)
        written = iter(drafts)
        return [
            [_written(problems[number], next(written), policy_step) for _ in range(per_problem)]
            for number in numbers
        ]

    def _fill(self, drafts: Sequence[Draft]) -> None:
        done = 0
        with self._policy.whole() as engine, engine.fused_for_now():
            sampler = Sampler(
                engine, self._tokenizer, max_batch=self._max_batch, keeps_logprobs=True
            )
            for draft in drafts:
                sampler.add(draft)
            while sampler.busy:
                done += len(sampler.step())
                self._on_done(done)


def prompts_of(
    tokenizer: ChatTokenizer, problems: Sequence[Problem], limit: int
) -> list[tuple[int, ...]]:
    """The ids that ask for each problem. Raises InvalidInput for one that fills the `limit`."""
    prompts = [encode_problem(tokenizer, problem) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) >= limit:
            raise InvalidInput(
                f"a problem has {len(prompt)} tokens, and the policy reads at most {limit}, its "
                f"answer included: {problem.text[:80]!r}; leave it out, or take a policy that "
                "reads more",
                param="data",
            )
    return prompts


def seed_of(seed: str, number: int, sample: int) -> int:
    """A seed of its own for every sample of every problem."""
    digest = hashlib.sha256(f"{seed}/{number}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8])


def _written(problem: Problem, draft: Draft, policy_step: int) -> Written:
    assert draft.completion is not None
    return Written(
        problem=problem,
        example=Example(ids=(*draft.prompt, *draft.ids), first=len(draft.prompt)),
        text=draft.completion.text,
        logprobs=tuple(draft.logprobs),
        policy_step=policy_step,
        is_cut=draft.completion.finish_reason != "eos",
    )
