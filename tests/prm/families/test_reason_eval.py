"""ReasonEval against its authors' script, for both of its sizes."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput
from prm.families.base import RecipeMismatch
from prm.families.reason_eval import SPEC, ReasonEvalRecipe, propose, validity_logit
from prm.manifest import ModelVersion
from prm.steps import join_steps
from prm.types import Message, Trajectory
from tests.layouts import save_layout, sentencepiece_layout, unigram_layout
from tests.own_heads import (
    ReasonEval,
    load_literal,
    random_head,
    save_checkpoint,
    tokenizer_of,
)
from tests.published import publish_prm, score_items, scorer_of

pytestmark = pytest.mark.anyio

PROMPT = "Question:\n{input}\nAnswer:\nLet's think step by step.\n"
# The BOS is what 7B pads with, a token of its own what 34B does.
PADDING = {"7B": "<s>", "34B": "<pad>"}
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Let x be real.", ["1. The problem asks for the least $x$.", "2. So x = 3.", "3. The end"]),
    ("1+1", ["2"]),
    # Near the separator, one token long, bytes without a piece.
    ("<s <pad", ["<s", "s>", "7", "8", "naïve → 7\n\n8", "  around  "]),
)


def stage(size: str, *, bias: bool, unigram: bool = False) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tokenizer = unigram_layout() if unigram else sentencepiece_layout()
        if size == "34B":
            tokenizer.add_special_tokens([AddedToken("<pad>", special=True, normalized=False)])
        names = ("score_dimension", "use_bias") if size == "7B" else ("score_dim", "bias")
        save_checkpoint(
            folder,
            random_head(ReasonEvalRecipe(bias=bias).head, size=32),
            architecture=f"ReasonEval_{size}",
            kind="mistral" if size == "7B" else "llama",
            vocab=tokenizer.get_vocab_size(),
            config=dict(zip(names, (3, bias), strict=True)),
        )
        save_layout(tokenizer, folder, bos="<s>", eos="</s>")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": PADDING[size]}))

    return write


def script_scores(folder: Path, size: str, problem: str, steps: Sequence[str]) -> list[float]:
    """As the script does it: separators in, tokens, separators out, softmax, p₁ + p₂."""
    tokenizer = tokenizer_of(folder)
    separator = f"{tokenizer.pad_token}"
    combined = "".join(step + separator for step in steps)
    tokens = tokenizer(PROMPT.format(input=problem) + separator + combined)["input_ids"]
    separator_id = tokenizer(separator)["input_ids"][-1]
    places: list[int] = []
    kept: list[int] = []
    for place, token in enumerate(tokens):
        if token == separator_id:
            places.append(place - 1 - len(places))
        else:
            kept.append(token)
    if size == "7B":
        kept, places = [1, *kept], places[2:]
    else:
        places = places[1:]
    model = load_literal(ReasonEval, folder)
    assert len(places) == len(steps)
    with torch.no_grad():
        scores = model(torch.tensor([kept]))[0, places, :].softmax(dim=-1)
    return [float(negative_neutral_positive[1:].sum()) for negative_neutral_positive in scores]


def published(root: Path, size: str, *, bias: bool, unigram: bool = False) -> ModelVersion:
    recipe = ReasonEvalRecipe(separator=PADDING[size], bias=bias)
    write = stage(size, bias=bias, unigram=unigram)
    return publish_prm(root, f"reason-eval-{size}", "reason_eval", recipe, write, separator="\n")


@pytest.mark.parametrize(
    ("size", "bias", "unigram"),
    [("7B", True, False), ("7B", False, True), ("34B", False, False), ("34B", True, True)],
)
async def test_scores_are_those_of_the_script(
    size: str, bias: bool, unigram: bool, tmp_path: Path
) -> None:
    version = published(tmp_path, size, bias=bias, unigram=unigram)
    found = await score_items(scorer_of(version), ITEMS)
    seen: list[float] = []
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        expected = script_scores(version.folder, size, problem, steps)
        assert [step.score for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)
        seen += [step.raw for step in scored.step_scores]
    assert max(seen) - min(seen) > 0.5, "scores that are all alike would prove nothing"


def test_the_logit_of_validity_is_that_of_the_softmax() -> None:
    for logits in ([0.3, -1.2, 2.0], [5.0, -3.0, -4.0], [0.0, 800.0, -800.0]):
        shares = torch.tensor(logits, dtype=torch.float64).softmax(-1)
        validity = 1 / (1 + math.exp(-validity_logit(*logits)))
        assert validity == pytest.approx(float(shares[1] + shares[2]))


@pytest.mark.parametrize("size", ["7B", "34B"])
def test_the_separator_in_a_text_is_refused(size: str, tmp_path: Path) -> None:
    version = published(tmp_path, size, bias=True)
    family = SPEC.load(version, ChatTokenizer(version.folder))
    response, steps = join_steps(["a", f"b{PADDING[size]}"], "\n")
    messages = (Message(role="user", content="1"),)
    with pytest.raises(InvalidInput, match="character 1") as caught:
        family.encode(Trajectory(messages=messages, response=response, steps=steps))
    assert caught.value.param == "steps[1]"


@pytest.mark.parametrize(("size", "bias"), [("7B", True), ("34B", False)])
def test_the_recipe_is_told_from_the_checkpoint(size: str, bias: bool, tmp_path: Path) -> None:
    version = published(tmp_path, size, bias=bias)
    proposal = propose(Checkpoint.open(version.folder))
    assert proposal.recipe == ReasonEvalRecipe(separator=PADDING[size], bias=bias)
    path = version.folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))
    with pytest.raises(RecipeMismatch, match="pad_token"):
        propose(Checkpoint.open(version.folder))
