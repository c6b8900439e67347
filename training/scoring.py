"""Step scores of rollouts, through the very code that serves them.

A published or staged version is bound to its family, and the family's own `encode` and
`score` decide what is read and what comes out, so that a threshold fitted here holds there.
"""

from collections.abc import Mapping, Sequence
from itertools import islice

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.reader import read_now
from prm.families import FAMILIES
from prm.families.base import EncodedTrajectory, Family, Read, ReadOutput
from prm.families.implicit import step_values
from prm.manifest import ModelVersion, PrmManifest
from prm.steps import join_steps
from prm.types import StepScore, Trajectory
from training.data import messages_of
from training.types import Rollout

# Trajectories per forward: 64 of 65 tokens keep a 128-wide model busy.
FORWARD_ROWS = 64


class PrmScorer:
    """An implicit PRM version with its models in memory.

    What was read once is kept in `known`, which several scorers of the same models may share:
    samples of one problem are often the same text.
    """

    def __init__(
        self,
        version: ModelVersion,
        tokenizer: ChatTokenizer,
        models: Mapping[str, CausalLM],
        known: dict[Read, ReadOutput] | None = None,
    ) -> None:
        assert isinstance(version.manifest, PrmManifest)
        self._family: Family = FAMILIES[version.manifest.family].load(version, tokenizer)
        self._separator = version.manifest.step_separator
        self._models = models
        self._known = {} if known is None else known

    def score(self, rollouts: Sequence[Rollout]) -> list[tuple[StepScore, ...]]:
        """The step scores of each rollout, which has at least one step."""
        encoded = [self._encode(rollout) for rollout in rollouts]
        outputs = iter(self._read([read for item in encoded for read in item.reads]))
        return [
            self._family.score(item, list(islice(outputs, len(item.reads)))).steps
            for item in encoded
        ]

    def reference_log_likelihoods(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Each step's log-probability under the reference alone: the baseline without training."""
        encoded = [self._encode(rollout) for rollout in rollouts]
        outputs = self._read([item.reads[-1] for item in encoded])
        return [
            step_values(output.values, item.step_values)
            for item, output in zip(encoded, outputs, strict=True)
        ]

    def _encode(self, rollout: Rollout) -> EncodedTrajectory:
        response, steps = join_steps(rollout.steps, self._separator)
        messages = messages_of(rollout.problem)
        return self._family.encode(Trajectory(messages=messages, response=response, steps=steps))

    def _read(self, reads: Sequence[Read]) -> list[ReadOutput]:
        """Outputs in the order of `reads`; each model sees what is new of its own in batches."""
        new = [read for read in dict.fromkeys(reads) if read not in self._known]
        for name, model in self._models.items():
            of_model = [read for read in new if read.model == name]
            for start in range(0, len(of_model), FORWARD_ROWS):
                chunk = of_model[start : start + FORWARD_ROWS]
                self._known.update(zip(chunk, read_now({name: model}, chunk), strict=True))
        return [self._known[read] for read in reads]
