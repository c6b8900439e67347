"""A checkpoint is imported as what it is, whole, or refused with what differs and the remedy."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Tokenizer

from prm.checkpoint import Checkpoint
from prm.checkpoint_files import choose_files
from prm.detection import Asked, detect
from prm.errors import InvalidInput, ModelFolderError, Unavailable
from prm.families import qwen
from prm.families.base import HeadLayout
from prm.golden_set import BUILT_IN, read_golden
from prm.importing import Imported, ImportRequest, import_checkpoint
from prm.manifest import PrmManifest
from prm.registry import Registry, load_version
from tests.checkpoints import CHECKPOINTS, checkpoint, stage_llama_chat
from tests.own_heads import (
    ProcessRewardModel,
    load_literal,
    qwen_layout,
    stage_qwen,
    tokenizer_of,
)

# What has to be said of those that no file tells.
SAID: dict[str, Asked] = {"generative": Asked(recipe="genprm")}
LABELS = {
    "qwen": "qwen-math-prm/1",
    "skywork": "skywork-o1/1",
    "token_head": "trl/1",
    "outcome": "qwen-math-rm/1",
    "reason_eval": "reason-eval/1",
    "pqm": "pqm/1",
    "math_shepherd": "math-shepherd/1",
    "rlhflow": "rlhflow-deepseek/1",
    "generative": "genprm/1",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of each family, made once; not to be changed."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


def quiet(what: str, done: int, total: int) -> None:
    """Nobody watches."""


def imported(folder: Path, root: Path, watch: Any = quiet, **options: Any) -> Imported:
    request: dict[str, Any] = {"name": "new", "version": "1", **options}
    return import_checkpoint(ImportRequest(folder=folder, root=root, **request), watch)


def files_under(root: Path) -> list[Path]:
    return list(root.rglob("*")) if root.exists() else []


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_a_family_is_told_from_the_files(family: str, folders: Callable[[str], Path]) -> None:
    found = detect(Checkpoint.open(folders(family)), SAID.get(family, Asked()))
    assert (found.family, found.recipe.label) == (family, LABELS[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_every_family_is_imported_with_scores_that_an_engine_reproduces(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    done = imported(folders(family), tmp_path / "models", asked=SAID.get(family, Asked()))
    version = Registry.open(tmp_path / "models").get("new")
    assert version is not None
    assert isinstance(version.manifest, PrmManifest)
    assert version.manifest.golden == done.manifest.golden
    assert len(version.manifest.golden) == len(BUILT_IN) >= 4
    for golden in version.manifest.golden:
        assert len(golden.raw) == (1 if family == "outcome" else len(golden.steps))
    assert len({number for golden in version.manifest.golden for number in golden.raw}) > 4
    # What a server does with it before it is ready, in a process of its own.
    check = (
        "import sys; from pathlib import Path; from prm.registry import load_version; "
        "from prm.engine.worker import load_models; "
        "load_models([load_version(Path(sys.argv[1]))], device='cpu', dtype=None, max_batch=1)"
    )
    subprocess.run([sys.executable, "-P", "-c", check, str(version.folder)], check=True)


@pytest.mark.parametrize(
    ("family", "asked", "message"),
    [
        (
            "qwen",
            Asked(family="rlhflow"),
            r"not of family rlhflow: architecture Qwen2ForProcessRewardModel is not a causal LM\. "
            r"This is a qwen-math-prm/1 checkpoint: `score\.2\.weight` has shape \[2, 32\]; import "
            r"it with --family qwen$",
        ),
        (
            "pqm",
            Asked(family="rlhflow"),
            r"which reads the vocabulary\. This is a pqm/1 .*`v_head\.summary\.weight`.* \[1, 32\]",
        ),
        (
            "token_head",
            Asked(family="skywork"),
            r"Qwen2ForTokenClassification is not ….*a trl/1 .*--family token_head",
        ),
        ("outcome", Asked(family="qwen"), r"qwen-math-rm/1 .*--family outcome"),
        (
            "rlhflow",
            Asked(family="qwen"),
            r"LlamaForCausalLM is not …ForProcessRewardModel.*rlhflow-deepseek/1",
        ),
        ("math_shepherd", Asked(recipe="er-prm"), r"nor ER-PRM's.*a math-shepherd/1 checkpoint"),
        ("rlhflow", Asked(recipe="math-shepherd"), r"neither Math-Shepherd's ids 12902, 648, 387"),
        ("outcome", Asked(recipe="sequence-classification"), r"files are read as qwen-math-rm/1"),
        ("token_head", Asked(recipe="repirl"), r"score\.weight is of shape \[2, 32\]; .* \[1, 32"),
        ("rlhflow", Asked(family="implicit"), r"name --beta, and --reference NAME@VERSION or"),
    ],
)
def test_another_family_is_refused_with_the_right_recipe(
    family: str, asked: Asked, message: str, folders: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelFolderError, match=message):
        detect(Checkpoint.open(folders(family)), asked)


def test_a_head_of_another_shape_is_of_no_family(tmp_path: Path) -> None:
    layout = HeadLayout(prefix="score", layers=("0", "2"), outputs=3)
    stage_qwen(layout, qwen_layout("<extra_0>"), architecture="Qwen2ForProcessRewardModel")(
        tmp_path
    )
    with pytest.raises(ModelFolderError) as error:
        detect(Checkpoint.open(tmp_path), Asked())
    assert "is of no known family (Qwen2ForProcessRewardModel)" in str(error.value)
    assert "qwen: score.2.weight is of shape [3, 32]; this kind has one of shape [2, 32]" in str(
        error.value
    )
    assert "math_shepherd: architecture Qwen2ForProcessRewardModel is not a causal LM" in str(
        error.value
    )


def test_a_marker_that_is_no_single_token_is_told(tmp_path: Path) -> None:
    stage_qwen(qwen.HEAD, qwen_layout(), architecture="Qwen2ForProcessRewardModel")(tmp_path)
    with pytest.raises(ModelFolderError, match=r"marker '<extra_0>' is \d+ tokens here"):
        detect(Checkpoint.open(tmp_path), Asked())


def test_a_plain_language_model_has_to_be_named(tmp_path: Path) -> None:
    stage_llama_chat(tmp_path / "some-chat-model")
    opened = Checkpoint.open(tmp_path / "some-chat-model")
    with pytest.raises(ModelFolderError) as error:
        detect(opened, Asked())
    for line in (
        "could be read by several families (LlamaForCausalLM)",
        "--family rlhflow (rlhflow-deepseek/1)",
        "--policy (a model that writes steps, and no PRM)",
        "implicit: nothing in a checkpoint tells an implicit PRM",
        "name --recipe genprm or --recipe thinkprm",
        "skywork: v_head.summary.weight is missing",
    ):
        assert line in str(error.value)
    found = detect(opened, Asked(recipe="rlhflow-mistral"))
    assert (found.family, found.step_separator, found.aggregation) == ("rlhflow", "\n", "mean")
    free = detect(
        opened,
        Asked(family="implicit", settings={"beta": 0.05, "reference": None, "end_token": True}),
    )
    assert free.recipe.model_dump()["end_token"] is True


def test_settings_change_the_recipe_and_unknown_ones_are_refused(
    folders: Callable[[str], Path],
) -> None:
    opened = Checkpoint.open(folders("token_head"))
    found = detect(opened, Asked(recipe="h4"))
    assert (found.recipe.label, found.step_separator) == ("h4/1", "\n\n")
    found = detect(opened, Asked(settings={"separator": " #"}))
    assert (found.recipe.label, found.step_separator) == ("trl/1", " #")
    with pytest.raises(InvalidInput, match="no setting 'beta'; it has context_limit, separator"):
        detect(opened, Asked(settings={"beta": 0.5}))
    with pytest.raises(InvalidInput, match=r"setting bos: .*boolean"):
        detect(opened, Asked(settings={"bos": 7}))
    with pytest.raises(InvalidInput, match="family 'tarot' is not one of implicit"):
        detect(opened, Asked(family="tarot"))
    with pytest.raises(InvalidInput, match="recipe 'h4' of family qwen is not one of qwen-math"):
        detect(opened, Asked(family="qwen", recipe="h4"))


def copied(folders: Callable[[str], Path], family: str, to: Path) -> Path:
    return shutil.copytree(folders(family), to / "checkpoint")


def run_remedy(error: ModelFolderError) -> None:
    """Do what the message says."""
    program, *arguments = shlex.split(str(error).splitlines()[-1].strip())
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)


@pytest.mark.slow
def test_pickled_weights_are_converted_by_the_remedy(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "qwen", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        path = folder / f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, path)
    torch.save({"lr": 1}, folder / "training_args.bin")
    with pytest.raises(ModelFolderError, match=r"pickles .*which can run code") as error:
        choose_files(folder)
    run_remedy(error.value)
    assert choose_files(folder).left_behind[0] == "pytorch_model-00001-of-00002.bin"
    again = load_file(folder / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.slow
def test_a_missing_tokenizer_file_is_made_by_the_remedy(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "generative", tmp_path)
    ours = Checkpoint.open(folder).tokenizer.encode_response("Step 1: 3+4=7, naïve")
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"})
    )
    made = Qwen2Tokenizer.from_pretrained(folder).backend_tokenizer.model.save(str(folder))
    assert {Path(name).name for name in made} == {"vocab.json", "merges.txt"}
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        ModelFolderError, match=r"make it from vocab\.json and merges\.txt"
    ) as error:
        choose_files(folder)
    run_remedy(error.value)
    assert Checkpoint.open(folder).tokenizer.encode_response("Step 1: 3+4=7, naïve") == ours


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"take it from the model that"),
    "no tokenizer config": (
        lambda f: (f / "tokenizer_config.json").unlink(),
        r"config\.json: miss",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: missing; no version"),
    "no architecture": (lambda f: (f / "config.json").write_text("{}"), r"names no architectures"),
    "an adapter without its configuration": (
        lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
        r"adapter_config\.json: missing, and adapter_model\.safetensors is there",
    ),
    "another file name": (
        lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
        r"holds weights\.safetensors, and neither .*; name one file model\.safetensors",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no weights"),
    "a lost shard": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-1.safetensors"}}'
        ),
        r"model-1\.safetensors: missing, and model\.safetensors\.index\.json lists it",
    ),
    "an escaping shard": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'),
        r"'\.\./b' is not a plain file name",
    ),
    "no such folder": (lambda f: shutil.rmtree(f), r"no such folder; download the checkpoint"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_an_incomplete_checkpoint_is_refused_with_the_remedy(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "qwen", tmp_path)
    damage, message = BREAKAGES[name]
    damage(folder)
    with pytest.raises(ModelFolderError, match=message):
        imported(folder, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_only_data_is_copied_and_the_rest_is_listed(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "qwen", tmp_path)
    for name in ("modeling_qwen2_rm.py", "README.md", "pytorch_model.bin"):
        (folder / name).write_text("x")
    (folder / "original").mkdir()
    files = choose_files(folder)
    assert sorted(files.paths) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert files.left_behind == [
        "README.md",
        "modeling_qwen2_rm.py",
        "original/",
        "pytorch_model.bin",
    ]
    assert "auto_map" in files.notes[0]


def card_scores(folder: Path, problem: str, steps: tuple[str, ...]) -> list[float]:
    """As Qwen2.5-Math-PRM's card computes them."""
    tokenizer, model = tokenizer_of(folder), load_literal(ProcessRewardModel, folder)
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    turns = (
        ("system", system),
        ("user", problem),
        ("assistant", "".join(s + "<extra_0>" for s in steps)),
    )
    chat = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), return_tensors="pt")
    with torch.no_grad():
        found = model(ids).softmax(-1)[ids == tokenizer.encode("<extra_0>")[0]]
    return [float(score) for score in found[:, 1]]


def golden_file(folder: Path, path: Path, *, off: float = 0.0) -> Path:
    lines = []
    for item in BUILT_IN:
        scores = card_scores(folder, item.chat[0].content, item.steps)
        scores[-1] += off
        lines.append(json.dumps({"problem": item.problem, "steps": item.steps, "scores": scores}))
    path.write_text("\n".join(lines))
    return path


def test_scores_of_the_model_card_are_reproduced_or_the_import_is_refused(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, root = folders("qwen"), tmp_path / "models"
    wrong = golden_file(folder, tmp_path / "wrong.jsonl", off=0.02)
    with pytest.raises(InvalidInput, match=r"wrong\.jsonl, line 1: scores\[0\] is expected to be"):
        imported(folder, root, golden=wrong)
    assert not root.exists()
    right = golden_file(folder, tmp_path / "right.jsonl")
    seen: list[tuple[str, int, int]] = []
    done = imported(
        folder,
        root,
        golden=right,
        tolerance=1e-4,
        watch=lambda *told: seen.append(told),
        aggregation="min",
        threshold=0.25,
        live=False,
    )
    version = load_version(root / "new" / "1")
    assert isinstance(version.manifest, PrmManifest)
    assert (version.manifest.aggregation, version.manifest.threshold) == ("min", 0.25)
    assert version.manifest.training == {"imported_from": "Qwen2.5-Math-PRM-7B"}
    assert str(tmp_path) not in (version.folder / "manifest.json").read_text()
    assert version.manifest.golden == done.manifest.golden
    assert not (root / "new" / "live.json").exists()
    assert sorted(path.name for path in root.rglob("*") if path.name.startswith(".")) == []
    copying = [told for told in seen if told[0] == "copying and verifying"]
    assert copying[-1][1] == copying[-1][2] == 2 * done.num_bytes
    with pytest.raises(InvalidInput, match="new@1 is already published"):
        imported(folder, root)


def test_a_dry_run_computes_everything_and_writes_nothing(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    done = imported(folders("skywork"), tmp_path / "models", dry_run=True)
    assert all(len(golden.raw) == len(golden.steps) for golden in done.manifest.golden)
    assert files_under(tmp_path) == []


def test_an_interrupted_copy_leaves_nothing(folders: Callable[[str], Path], tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "copying and verifying" and done > total // 4:
            assert files_under(tmp_path), "something was begun"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported(folders("token_head"), tmp_path / "models", watch=interrupt)
    assert files_under(tmp_path) == []


def test_weights_that_are_not_the_architectures_are_refused_by_the_engine(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "rlhflow", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelFolderError, match=r"checkpoint: the weights lack model\.layers\.2"):
        imported(folder, tmp_path / "models", asked=Asked(family="rlhflow"))
    assert not (tmp_path / "models").exists()


def test_an_item_that_the_family_cannot_read_is_named(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "golden.jsonl"
    file.write_text('\n{"problem": "1", "steps": ["a<extra_0>"]}')
    with pytest.raises(InvalidInput, match=r"line 2: .*marker '<extra_0>' at character 1"):
        imported(folders("qwen"), tmp_path / "models", golden=file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no item"),
        ("{", "line 1: not JSON"),
        ('\n{"problem": "1"}', "line 2: steps: Field required"),
        ('{"problem": "1", "steps": ["a"], "score": 1}', "line 1: score: Extra"),
        ('{"steps": ["a"]}', "line 1: item: .*either problem or messages"),
        ('{"problem": "1", "steps": ["a"], "scores": [NaN]}', r"line 1: scores\.0: .*finite"),
    ],
)
def test_a_bad_golden_file_names_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "golden.jsonl").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        read_golden(tmp_path / "golden.jsonl")


@pytest.mark.slow
def test_an_implicit_prm_pins_a_policy_that_was_imported_in_shards(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    chat, root = folders("rlhflow"), tmp_path / "models"
    sharded = copied(folders, "rlhflow", tmp_path)
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(chat).save_pretrained(sharded, max_shard_size="40KB")
    (sharded / "model-of-somebody-else.safetensors").write_bytes(b"no safetensors at all")
    done = imported(sharded, root, name="reference", is_policy=True)
    assert len([name for name in done.files.paths if name.endswith(".safetensors")]) > 1
    assert done.files.left_behind == ["model-of-somebody-else.safetensors"]
    prm = Asked(family="implicit", settings={"beta": 0.05, "step_value": "accumulative"})
    imported(chat, root, name="prm", asked=prm, reference="reference@1", step_separator="\n")
    registry = Registry.open(root)
    version = registry.get("prm")
    assert version is not None
    assert [reference.key for reference in registry.references_of(version)] == ["reference@1"]
    # The same weights twice: every log-ratio is nothing.
    assert all(abs(raw) < 1e-5 for golden in version.manifest.golden for raw in golden.raw)
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json: differs from that of its ref"):
        imported(folders("generative"), root, name="other", asked=prm, reference="reference")
    with pytest.raises(ModelFolderError, match="missing"):
        imported(chat, root, name="other", asked=prm, reference="nobody@3")
    with pytest.raises(ModelFolderError, match=r"more than a language model\. This is a pqm/1"):
        imported(folders("pqm"), root, name="other", is_policy=True)
    assert not (root / "other").exists()


def test_a_computation_that_dies_is_told_with_its_last_word(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises((Unavailable, ModelFolderError), match=r"cannot be loaded on nonsense"):
        imported(folders("qwen"), tmp_path / "models", device="nonsense")
    assert not (tmp_path / "models").exists()
