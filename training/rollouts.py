"""Rollouts: what a policy writes for a problem, with both labels."""

from collections.abc import Callable, Sequence

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.sampler import Draft, Sampler, SamplingParams
from training.data import encode_problem
from training.tasks import arithmetic
from training.types import Problem, Rollout

# A solution of five operations and its answer line are about 50 tokens.
MAX_TOKENS = 96


def sample_rollouts(
    policy: CausalLM,
    tokenizer: ChatTokenizer,
    problems: Sequence[Problem],
    *,
    per_problem: int,
    seed: int,
    max_batch: int = 64,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[list[Rollout]]:
    """`per_problem` responses to each problem at temperature 1, in the problems' order.

    `on_done` hears how many responses are complete.
    """
    params = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS)
    prompts = [encode_problem(tokenizer, problem) for problem in problems]
    repeated = [prompt for prompt in prompts for _ in range(per_problem)]
    drafts = [
        Draft(prompt=prompt, params=params, seed=seed * len(repeated) + number)
        for number, prompt in enumerate(repeated)
    ]
    _write(drafts, Sampler(policy, tokenizer, max_batch=max_batch), on_done)
    texts = iter([draft.completion.text for draft in drafts if draft.completion is not None])
    return [[label(problem, next(texts)) for _ in range(per_problem)] for problem in problems]


def label(problem: Problem, response: str) -> Rollout:
    """A rollout with its outcome label and its process label; empty lines are no steps."""
    steps = tuple(line for line in response.split(arithmetic.SEPARATOR) if line.strip())
    return Rollout(
        problem=problem,
        steps=steps,
        is_correct=arithmetic.is_correct(problem, steps),
        first_error=arithmetic.first_error(problem, steps),
    )


def _write(drafts: Sequence[Draft], sampler: Sampler, on_done: Callable[[int], None]) -> None:
    for draft in drafts:
        sampler.add(draft)
    count = 0
    while sampler.busy:
        count += len(sampler.step())
        on_done(count)
