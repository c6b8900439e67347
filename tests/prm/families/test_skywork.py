"""Skywork-o1-Open-PRM against its authors' script."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput
from prm.families.base import HeadRead, RecipeMismatch
from prm.families.skywork import HEAD, SPEC, SkyworkRecipe, propose
from prm.manifest import ModelVersion
from prm.steps import cut_steps, join_steps
from prm.types import Message, Trajectory
from tests.own_heads import WithValueHead, load_literal, qwen_layout, stage_qwen, tokenizer_of
from tests.published import publish_prm, score_items, scorer_of

pytestmark = pytest.mark.anyio

ARCHITECTURE = "Qwen2ForPrmModel"
KEEP = SkyworkRecipe(empty_lines="keep")
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Janet's ducks lay 16 eggs per day.", ["Step 1: 16 - 3 = 13", "Step 2: 13 * 2 = $26.", "26"]),
    ("1+1", ["2"]),
    ("", ["naïve → 7", "\\n is no newline", " indented ", "<|im_end|"]),
)


def script_scores(folder: Path, problem: str, response: str) -> dict[int, float]:
    """As the script does it, by line number: prepare_input, value head, sigmoid at the flags."""
    tokenizer = tokenizer_of(folder)
    model = load_literal(WithValueHead, folder)
    ids = tokenizer.encode((tokenizer.bos_token or "") + problem + "\n")
    flags = [0] * len(ids)
    newline_id = tokenizer.encode("\n")[-1]
    for line in response.split("\n"):
        line_ids = [*(tokenizer.encode(line) if line else []), newline_id]
        ids += line_ids
        flags += [0] * (len(line_ids) - 1) + [1]
    with torch.no_grad():
        scores = torch.sigmoid(model(torch.tensor([ids])))[0]
    return dict(enumerate(scores[torch.tensor(flags) == 1].tolist()))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelVersion]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name, bos in (("plain", ""), ("with-bos", "<|endoftext|>")):
        stage = stage_qwen(
            HEAD, qwen_layout(), architecture=ARCHITECTURE, bos=bos, with_lm_head=True
        )
        found[name] = publish_prm(root, name, "skywork", KEEP, stage, separator="\n")
    merge = stage_qwen(HEAD, qwen_layout(), architecture=ARCHITECTURE)
    found["merge"] = publish_prm(root, "merge", "skywork", SkyworkRecipe(), merge, separator="\n")
    return found


def encoded(version: ModelVersion, response: str, separator: str = "\n") -> HeadRead:
    family = SPEC.load(version, ChatTokenizer(version.folder))
    (read,) = family.encode(
        Trajectory(
            messages=(Message(role="user", content="1"),),
            response=response,
            steps=cut_steps(response, separator),
        )
    ).reads
    assert isinstance(read, HeadRead)
    return read


@pytest.mark.parametrize("name", ["plain", "with-bos", "merge"])
async def test_scores_are_those_of_the_script(name: str, models: dict[str, ModelVersion]) -> None:
    version = models[name]
    found = await score_items(scorer_of(version), ITEMS)
    seen: list[float] = []
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        expected = list(script_scores(version.folder, problem, "\n".join(steps)).values())
        assert [step.score for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)
        seen += [step.raw for step in scored.step_scores]
    assert max(seen) - min(seen) > 0.5, "scores that are all alike would prove nothing"


@pytest.mark.parametrize(
    "response",
    ["a\n\nb = 2\n\n\nc", "\n\na", "a\n  \nb", "a \nb\n", "a\n\n"],
)
async def test_kept_empty_lines_are_read_as_the_script_reads_them(
    response: str, models: dict[str, ModelVersion]
) -> None:
    version = models["plain"]
    trajectory = Trajectory(
        messages=(Message(role="user", content="1"),),
        response=response,
        steps=cut_steps(response, "\n"),
    )
    (scored,) = (await scorer_of(version).score([trajectory])).items
    by_line = script_scores(version.folder, "1", response)
    expected = [by_line[n] for n, line in enumerate(response.split("\n")) if line.strip()]
    assert [step.score for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)


def test_merged_empty_lines_are_not_read(models: dict[str, ModelVersion]) -> None:
    single = encoded(models["merge"], "a\nb = 2\nc")
    assert encoded(models["merge"], "a\n\nb = 2\n \n\nc\n") == single
    kept = encoded(models["plain"], "a\n\nb = 2\n \n\nc\n")
    assert len(kept.ids) > len(single.ids)


def test_a_step_of_several_lines_is_read_at_its_last(models: dict[str, ModelVersion]) -> None:
    newline_id = ChatTokenizer(models["merge"].folder).encode_markup("\n")[0]
    for name in ("merge", "plain"):
        read = encoded(models[name], "a\nb\n\nc\nd", "\n\n")
        newlines = [place for place, token in enumerate(read.ids) if token == newline_id]
        # After the problem, a, b, (the empty line,) c and d.
        assert read.positions == (newlines[2], newlines[-1])


def test_two_steps_on_one_line_have_one_score_and_are_refused(
    models: dict[str, ModelVersion],
) -> None:
    assert len(encoded(models["merge"], "a. b. c", ". ").positions) == 3
    with pytest.raises(InvalidInput, match="steps 0 and 1 end on one line") as caught:
        encoded(models["plain"], "a. b. c", ". ")
    assert caught.value.param == "steps[1]"


@given(
    st.lists(st.text("ab \n7", min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=5)
)
def test_every_step_has_a_position_of_its_own(
    models: dict[str, ModelVersion], steps: list[str]
) -> None:
    for name in ("merge", "plain"):
        version = models[name]
        response, placed = join_steps(steps, "\n")
        family = SPEC.load(version, ChatTokenizer(version.folder))
        messages = (Message(role="user", content="1"),)
        (read,) = family.encode(
            Trajectory(messages=messages, response=response, steps=placed)
        ).reads
        assert isinstance(read, HeadRead)
        assert len(read.positions) == len(set(read.positions)) == len(steps)


def test_a_chat_of_several_turns_and_a_control_token_are_refused(
    models: dict[str, ModelVersion],
) -> None:
    family = SPEC.load(models["merge"], ChatTokenizer(models["merge"].folder))
    response, steps = join_steps(["a"], "\n")
    turns = (Message(role="system", content="s"), Message(role="user", content="u"))
    with pytest.raises(InvalidInput, match="system, user"):
        family.encode(Trajectory(messages=turns, response=response, steps=steps))
    control = (Message(role="user", content="x <|im_start|>"),)
    with pytest.raises(InvalidInput, match="control token"):
        family.encode(Trajectory(messages=control, response=response, steps=steps))


def test_a_control_token_in_a_step_stays_text(models: dict[str, ModelVersion]) -> None:
    read = encoded(models["merge"], "<|im_end|>")
    control = ChatTokenizer(models["merge"].folder).encode_markup("<|im_end|>")
    assert len(control) == 1
    assert control[0] not in read.ids


def test_the_recipe_is_told_from_the_checkpoint(
    models: dict[str, ModelVersion], tmp_path: Path
) -> None:
    proposal = propose(Checkpoint.open(models["plain"].folder))
    assert (proposal.recipe, proposal.step_separator) == (SkyworkRecipe(), "\n")
    assert proposal.aggregation == "mean"
    stage_qwen(HEAD, qwen_layout("[PRM]"), architecture=ARCHITECTURE)(tmp_path)
    with pytest.raises(RecipeMismatch, match="PQM"):
        propose(Checkpoint.open(tmp_path))


def test_another_class_with_such_a_head_is_named(tmp_path: Path) -> None:
    stage_qwen(HEAD, qwen_layout(), architecture="Qwen2Model")(tmp_path)
    with pytest.raises(RecipeMismatch, match="architecture Qwen2Model is not …ForPrmModel or …"):
        propose(Checkpoint.open(tmp_path))
