"""Whether a rollout's steps are right: as its task knows, or as completions of its prefixes tell.

Math-Shepherd (arXiv 2312.08935 §3.3): a step is as good as the chance to get from it to the right
answer, estimated by letting the policy complete the response from there, several times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from prm.chat import ChatTokenizer
from prm.engine.sampler import Draft, Sampler, SamplingParams
from training.algorithms.step_bce import monte_carlo_labels
from training.data import Example
from training.grades import Grader
from training.held_out import ResponseReader
from training.models import TrainedLM
from training.rollout_batch import Group, Written
from training.settings import StepBce
from training.spec import Rollouts
from training.writers import seed_of

# One per step; None: nobody knows.
Labels = tuple[float | None, ...]


class StepLabeller(Protocol):
    """Labels the steps of graded rollouts."""

    def __call__(self, groups: Sequence[Group], seed: str) -> list[list[Labels]]:
        """Of every rollout of every group, a label per step."""
        ...


class TaskLabels:
    """Steps before the first error are right, it is wrong, and what follows nobody judges."""

    def __init__(self, reader: ResponseReader) -> None:
        assert reader.first_error is not None, "only a task knows first errors"
        self._first_error = reader.first_error
        self._reader = reader

    def __call__(self, groups: Sequence[Group], seed: str) -> list[list[Labels]]:
        """See `StepLabeller`."""
        return [[self._of(rollout) for rollout in group] for group in groups]

    def _of(self, rollout: Written) -> Labels:
        count = len(self._reader.step_spans(rollout.text))
        error = self._first_error(rollout.problem, rollout.text)
        if error is None:
            return (1.0,) * count
        return ((1.0,) * error + (0.0,) + (None,) * count)[:count]


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A prompt's ids and those of a response up to a step's end: the same one is completed once."""

    prompt: tuple[int, ...]
    written: tuple[int, ...]


class MonteCarloLabels:
    """Completions of each prefix by the policy as it is, in this process.

    The last step of a response that ended by itself has the outcome for a label. Where none of a
    prefix's completions could be graded its step has none.
    """

    def __init__(
        self,
        settings: StepBce,
        policy: TrainedLM,
        tokenizer: ChatTokenizer,
        reader: ResponseReader,
        grader: Grader,
        rollouts: Rollouts,
        *,
        max_tokens: int,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._tokenizer = tokenizer
        self._reader = reader
        self._grader = grader
        self._rollouts = rollouts
        self._max_tokens = max_tokens

    def __call__(self, groups: Sequence[Group], seed: str) -> list[list[Labels]]:
        """See `StepLabeller`."""
        wanted: dict[_Prefix, Written] = {}
        for group in groups:
            for rollout in group:
                for prefix in self._prefixes(rollout):
                    wanted.setdefault(prefix, rollout)
        labels = self._labels(wanted, seed)
        return [[self._of(rollout, labels) for rollout in group] for group in groups]

    def _of(self, rollout: Written, labels: dict[_Prefix, float]) -> Labels:
        found: list[float | None] = [labels.get(prefix) for prefix in self._prefixes(rollout)]
        if len(found) < len(self._reader.step_spans(rollout.text)):
            found.append(float(rollout.reward >= 1))
        return tuple(found)

    def _prefixes(self, rollout: Written) -> list[_Prefix]:
        """Of each step; without the last one where the response ended with it."""
        ends = [end for _, end in self._reader.step_spans(rollout.text)]
        prompt = rollout.example.ids[: rollout.example.first]
        return [
            _Prefix(prompt, self._tokenizer.encode_response(rollout.text[:end]).ids)
            for end in (ends if rollout.is_cut else ends[:-1])
        ]

    def _labels(self, wanted: dict[_Prefix, Written], seed: str) -> dict[_Prefix, float]:
        completed = self._complete(wanted, seed)
        # The grader leaves out what it cannot grade: each is known again by what it goes on from.
        rewards: dict[tuple[tuple[int, ...], int], list[bool]] = {}
        for group in self._grader.grade(list(completed.values())).groups:
            for rollout in group:
                example = rollout.example
                key = (example.ids[: example.first], example.first)
                rewards.setdefault(key, []).append(rollout.reward >= 1)
        labels = {}
        for prefix in completed:
            ids = (*prefix.prompt, *prefix.written)
            if is_correct := rewards.get((ids, len(ids))):
                row = torch.tensor([[is_correct]])
                labels[prefix] = float(monte_carlo_labels(row, self._settings))
        return labels

    def _complete(self, wanted: dict[_Prefix, Written], seed: str) -> dict[_Prefix, list[Written]]:
        """Whole responses that begin with each prefix."""
        drafts: dict[_Prefix, list[Draft]] = {}
        for number, prefix in enumerate(wanted):
            drafts[prefix] = [
                self._draft(prefix, seed_of(seed, number, sample))
                for sample in range(self._settings.continuations)
                if self._room(prefix) > 0
            ]
        with self._policy.whole() as engine:
            sampler = Sampler(engine, self._tokenizer, max_batch=self._rollouts.max_batch)
            for of_prefix in drafts.values():
                for draft in of_prefix:
                    sampler.add(draft)
            while sampler.busy:
                sampler.step()
        return {
            prefix: [self._written(prefix, wanted[prefix], draft) for draft in of_prefix]
            for prefix, of_prefix in drafts.items()
        }

    def _room(self, prefix: _Prefix) -> int:
        """Tokens that a completion may have; a response is no longer than any other rollout."""
        read = len(prefix.prompt) + len(prefix.written)
        return min(
            self._max_tokens - len(prefix.written), self._policy.engine.context_limit - read - 1
        )

    def _draft(self, prefix: _Prefix, seed: int) -> Draft:
        params = SamplingParams(
            temperature=self._rollouts.temperature, max_tokens=self._room(prefix)
        )
        return Draft(
            prompt=(*prefix.prompt, *prefix.written),
            written=len(prefix.written),
            params=params,
            seed=seed,
        )

    def _written(self, prefix: _Prefix, of: Written, draft: Draft) -> Written:
        assert draft.completion is not None
        ids = tuple(draft.prompt)
        return Written(
            problem=of.problem,
            example=Example(ids=(*ids, *draft.ids), first=len(ids)),
            text=self._tokenizer.decode(prefix.written) + draft.completion.text,
            logprobs=(),
            policy_step=of.policy_step,
            is_cut=draft.completion.finish_reason != "eos",
        )
