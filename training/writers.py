"""Who writes rollouts: the policy that trains, in this process, from the weights it has now."""

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

    `is_exact`: its log-probs are the trainer's, up to rounding.
    """

    is_exact: bool

    def write(
        self, problems: Sequence[Problem], *, seed: str, policy_step: int, per_problem: int
    ) -> list[list[Written]]:
        """`per_problem` responses to each problem, in order; the same for the same seed."""
        ...


class InProcessWriter:
    """Samples with the engine's own sampler from the trainer's own tensors: nothing is copied.

    Log-probs come with the samples and are the trainer's up to rounding, so that at temperature 1
    no forward is spent on what the policy was when it wrote.
    """

    is_exact = True

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

    def write(
        self, problems: Sequence[Problem], *, seed: str, policy_step: int, per_problem: int
    ) -> list[list[Written]]:
        """See `Writer.write`. Raises InvalidInput for a problem that leaves no room to answer."""
        prompts = [self._prompt(problem) for problem in problems]
        sampler = Sampler(
            self._policy.engine, self._tokenizer, max_batch=self._max_batch, keeps_logprobs=True
        )
        drafts = [
            Draft(prompt=prompt, params=self._params, seed=seed_of(seed, number, sample))
            for number, prompt in enumerate(prompts)
            for sample in range(per_problem)
        ]
        for draft in drafts:
            sampler.add(draft)
        done = 0
        while sampler.busy:
            done += len(sampler.step())
            self._on_done(done)
        written = iter(drafts)
        return [
            [_written(problem, next(written), policy_step) for _ in range(per_problem)]
            for problem in problems
        ]

    def _prompt(self, problem: Problem) -> tuple[int, ...]:
        prompt = encode_problem(self._tokenizer, problem)
        if len(prompt) >= (limit := self._policy.engine.context_limit):
            raise InvalidInput(
                f"a problem has {len(prompt)} tokens, and the policy reads at most {limit}, its "
                f"answer included: {problem.text[:80]!r}; leave it out, or take a policy that "
                "reads more",
                param="data",
            )
        return prompt


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
