"""Math-Shepherd and its kin: a causal LM that says `+` or `-` at a tag behind every step.

    {problem} {step 1} ки\\n{step 2} ки\\n…        the whole text is tokenised at once, after a BOS

At each tag's own token the logits of the two labels are read; raw = l₊ − l₋, so that the score is
the softmax of the two. Math-Shepherd, arXiv 2312.08935, as its model card reads it; ER-PRM, arXiv
2412.11006, keeps the tag and takes other tokens for the labels.

Traps. The tag of a SentencePiece tokenizer is the piece with the space in it, and a word piece at
the start of a line is another token than the same after a space: no part of the text may be
tokenised alone. A tag inside a problem or step would be one step more: it is refused where the
tokenizer makes a tag of it, and harmless elsewhere. White space around a step would hide its tag
from the tokenizer; the authors' data have none, and it is not read.
"""

from collections.abc import Sequence
from typing import Literal

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families.base import EncodedTrajectory, FamilySpec, Proposal, Recipe, RecipeMismatch
from prm.families.bound import HeadFamily
from prm.families.proposing import check_causal, named_like
from prm.families.texts import problem_of, refuse_control_tokens, single_id, step_field
from prm.manifest import ModelVersion
from prm.types import Trajectory


class MathShepherdRecipe(Recipe):
    """The tag behind a step, the two labels, and what joins problem and steps.

    An id that is set must be the tokenizer's; None takes whatever single token the text is.
    """

    name: Literal["math-shepherd", "er-prm"] = "math-shepherd"
    tag: str = " ки"
    tag_id: int | None = 12902
    good: str = "+"
    good_id: int | None = 648
    bad: str = "-"
    bad_id: int | None = 387
    problem_joint: str = " "
    step_joint: str = "\n"


ER_PRM = MathShepherdRecipe(
    name="er-prm", tag_id=None, good=" +", good_id=None, bad=" -", bad_id=None
)


class MathShepherdFamily(HeadFamily[MathShepherdRecipe]):
    """A version of this kind, ready to encode and to score."""

    def __init__(
        self, version: ModelVersion, recipe: MathShepherdRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        folder = version.folder
        self._tag_id = _tag_id(version, recipe, tokenizer)
        self._labels = (
            single_id(folder, tokenizer, recipe.good, recipe.good_id),
            single_id(folder, tokenizer, recipe.bad, recipe.bad_id),
        )

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read, at every tag."""
        problem = problem_of(trajectory)
        refuse_control_tokens(trajectory, self._tokenizer)
        steps = [step.text.strip() for step in trajectory.steps]
        self._check_least(problem, *steps)
        text, ends = self._write(problem, steps)
        encoded = self._tokenizer.encode_marked(text, add_special_tokens=True)
        self.check_length(len(encoded.ids))
        tags = {
            encoded.char_offsets[place][1]: place
            for place, token in enumerate(encoded.ids)
            if token == self._tag_id
        }
        if foreign := sorted(tags.keys() - set(ends)):
            raise self._stray_tag(trajectory, foreign[0], len(problem), ends)
        for step, end in zip(trajectory.steps, ends, strict=True):
            if end not in tags:
                raise InvalidInput(
                    f"the end of step {step.index} and the tag {self.recipe.tag!r} behind it make "
                    "one token together, so that no score could be read; end the step differently",
                    param=step_field(trajectory, step.index),
                )
        positions = [tags[end] for end in ends]
        return self._read_at(encoded.ids, positions, width=2, labels=self._labels)

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`."""
        good, bad = outputs
        return good - bad

    def _write(self, problem: str, steps: Sequence[str]) -> tuple[str, list[int]]:
        """The text that the model reads, and where in it each tag ends."""
        text = problem + self.recipe.problem_joint
        ends: list[int] = []
        for step in steps:
            text += (self.recipe.step_joint if ends else "") + step + self.recipe.tag
            ends.append(len(text))
        return text, ends

    def _stray_tag(
        self, trajectory: Trajectory, at: int, problem_chars: int, ends: Sequence[int]
    ) -> InvalidInput:
        if at <= problem_chars:
            what, field = "the problem", "messages[0].content"
        else:
            index = next(i for i, end in enumerate(ends) if at < end)
            what, field = f"step {index}", step_field(trajectory, index)
        return InvalidInput(
            f"{what} holds the step tag {self.recipe.tag.strip()!r}, which would be read as one "
            "step more; remove it or write it differently",
            param=field,
        )


def _tag_id(version: ModelVersion, recipe: MathShepherdRecipe, tokenizer: ChatTokenizer) -> int:
    """The tag's id where it stands: behind a step, and before the next line."""
    path = version.folder / "tokenizer.json"
    before = tokenizer.encode_markup("1")
    ids = tokenizer.encode_markup("1" + recipe.tag + recipe.step_joint + "1")
    alone = tokenizer.encode_markup("1" + recipe.tag)
    if len(alone) != len(before) + 1 or alone[:-1] != before or ids[: len(alone)] != alone:
        raise ModelFolderError(
            path,
            f"the tag {recipe.tag!r} behind a step is {len(alone) - len(before)} tokens here, or "
            "merges with its neighbours; the recipe needs one token",
        )
    if recipe.tag_id not in (None, alone[-1]):
        raise ModelFolderError(
            path,
            f"the tag {recipe.tag!r} is one token with id {recipe.tag_id} in recipe "
            f"{recipe.label}; here it is {alone[-1]}",
        )
    return alone[-1]


def propose(checkpoint: Checkpoint) -> Proposal[MathShepherdRecipe]:
    """Math-Shepherd by its tokenizer's ids; ER-PRM where tag and labels are single tokens.

    Nothing else tells either from any causal LM: see `Proposal.is_certain`.
    """
    check_causal(checkpoint)
    tokenizer = checkpoint.tokenizer
    found = []
    for recipe in (MathShepherdRecipe(), ER_PRM):
        if recipe.name != checkpoint.asked.get("name", recipe.name):
            continue
        before = len(tokenizer.encode_markup("1"))
        tag = tokenizer.encode_markup("1" + recipe.tag)[before:]
        labels = [tokenizer.encode_markup(text) for text in (recipe.good, recipe.bad)]
        ids = [id_ for text in (tag, *labels) for id_ in text]
        wanted = [recipe.tag_id, recipe.good_id, recipe.bad_id]
        is_single = all(len(text) == 1 for text in (tag, *labels))
        if is_single and all(want in (None, id_) for want, id_ in zip(wanted, ids, strict=True)):
            hint = named_like(checkpoint, "shepherd" if recipe.tag_id else "math-prm", "er-prm")
            return Proposal(recipe=recipe, step_separator="\n", is_certain=hint)
        found.append(f"{recipe.name}: {recipe.tag!r}, {recipe.good!r}, {recipe.bad!r} are {ids}")
    raise RecipeMismatch(
        "the tokenizer has neither Math-Shepherd's ids 12902, 648, 387 nor ER-PRM's single tokens ("
        + "; ".join(found)
        + ")"
    )


SPEC = FamilySpec(
    name="math_shepherd",
    architectures=("ForCausalLM",),
    recipe=MathShepherdRecipe,
    bind=MathShepherdFamily,
    propose=propose,
)
