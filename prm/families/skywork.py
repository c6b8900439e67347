"""Skywork-o1-Open-PRM: a value head read at the newline that closes each line of the response.

    {bos}{problem}\\n{line 1}\\n{line 2}\\n…          no chat template; every line tokenised alone

Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B: SkyworkAI/skywork-o1-prm-inference, `io_utils.py` and
`prm_model.py`. The head is one Linear with a bias on the last hidden state (its dropout is off when
a model is only read); raw is its value, the score its sigmoid. The authors rank by the mean.

Traps. The authors split at every "\\n", so that an empty line has a position and a score of its
own, and copies of their script differ in what they do with it. `empty_lines` "keep" lets the model
read what their script lets it read: the response's lines as they are, empty ones among them.
"merge" leaves out lines of white space alone, so that steps read the same whether one or two line
ends part them. Either way a step's score is the one at its last line that has text. Behind vLLM the
authors' plugin gives the value, not its sigmoid. Some Qwen2 tokenizers have no BOS token: then
there is none here.
"""

from collections.abc import Sequence
from typing import Literal

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput
from prm.families.base import (
    EncodedTrajectory,
    FamilySpec,
    HeadLayout,
    Proposal,
    Recipe,
    RecipeMismatch,
)
from prm.families.bound import HeadFamily
from prm.families.proposing import check_architecture, check_head
from prm.families.texts import problem_of, single_id, step_field
from prm.manifest import ModelVersion
from prm.types import Trajectory

HEAD = HeadLayout(prefix="v_head.summary", outputs=1)


class SkyworkRecipe(Recipe):
    """What becomes of empty lines; see above."""

    name: Literal["skywork-o1"] = "skywork-o1"
    empty_lines: Literal["merge", "keep"] = "merge"


class SkyworkFamily(HeadFamily[SkyworkRecipe]):
    """A version of this kind, ready to encode and to score."""

    def __init__(
        self, version: ModelVersion, recipe: SkyworkRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        self._newline_id = single_id(version.folder, tokenizer, "\n", None)

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read, at the newline behind every step."""
        problem = problem_of(trajectory)
        self._check_least(problem, trajectory.response)
        self._tokenizer.refuse_control_tokens(problem, param="messages[0].content")
        ids = list(
            self._tokenizer.encode_markup(
                self._tokenizer.bos_text + problem + "\n", add_special_tokens=True
            )
        )
        positions = []
        for lines in self._lines(trajectory):
            for line in lines:
                ids += self._tokenizer.encode_response(line).ids
                ids.append(self._newline_id)
            positions.append(len(ids) - 1)
        return self._read_at(ids, positions, width=HEAD.outputs)

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`."""
        (value,) = outputs
        return value

    def _lines(self, trajectory: Trajectory) -> list[list[str]]:
        """The lines that are read before each step's score is, the step's last line last."""
        if self.recipe.empty_lines == "merge":
            return [
                [line for line in step.text.split("\n") if line.strip()]
                for step in trajectory.steps
            ]
        return _whole_lines(trajectory)


def _whole_lines(trajectory: Trajectory) -> list[list[str]]:
    """The response's lines as they stand, up to the end of each step.

    Raises InvalidInput for two steps that end on one line: it has one score.
    """
    found = []
    start = 0
    for step in trajectory.steps:
        last = step.char_start + len(step.text.rstrip())
        end = trajectory.response.find("\n", last)
        end = end if end >= 0 else len(trajectory.response)
        if start > last:
            raise InvalidInput(
                f"steps {step.index - 1} and {step.index} end on one line, and this recipe has one "
                "score per line; give steps that end with their line",
                param=step_field(trajectory, step.index),
            )
        found.append(trajectory.response[start:end].split("\n"))
        start = end + 1
    return found


def propose(checkpoint: Checkpoint) -> Proposal[SkyworkRecipe]:
    """By the value head, which a PQM has too: that one has its marker in the vocabulary."""
    check_architecture(checkpoint, SPEC.architectures)
    check_head(checkpoint, HEAD)
    if checkpoint.tokenizer.token_id("[PRM]") is not None:
        raise RecipeMismatch("the tokenizer has the token '[PRM]', which is PQM's")
    return Proposal(recipe=SkyworkRecipe(), step_separator="\n", aggregation="mean")


SPEC = FamilySpec(
    name="skywork",
    architectures=("ForPrmModel", "ForCausalLM", "ForCausalLMWithValueHead"),
    recipe=SkyworkRecipe,
    bind=SkyworkFamily,
    propose=propose,
    head=lambda _: HEAD,
)
