"""A checkpoint is imported as what it is, whole, or refused with what differs and the remedy."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prm.errors import InvalidInput, ModelFolderError, Unavailable
from prm.importing import Asked
from prm.importing.golden_items import BUILT_IN
from prm.manifest import PrmManifest
from prm.registry import Registry, load_version
from prm.registry.holding import LOCK
from tests.checkpoints import CHECKPOINTS
from tests.imports import SAID, copied, imported
from tests.own_heads import ProcessRewardModel, load_literal, tokenizer_of


def files_under(root: Path) -> list[Path]:
    return list(root.rglob("*")) if root.exists() else []


@pytest.fixture(scope="module")
def every_family(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The version folder of a family's checkpoint, imported once."""
    root = tmp_path_factory.mktemp("imported") / "models"

    def version(family: str) -> Path:
        if not (root / family).exists():
            imported(folders(family), root, name=family, asked=SAID.get(family, Asked()))
        return root / family / "1"

    return version


@pytest.mark.slow
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_every_family_is_imported_with_scores_of_many_items(
    family: str, every_family: Callable[[str], Path]
) -> None:
    version = load_version(every_family(family))
    assert isinstance(version.manifest, PrmManifest)
    assert len(version.manifest.golden) == len(BUILT_IN) >= 4
    for golden in version.manifest.golden:
        assert len(golden.raw) == (1 if family == "outcome" else len(golden.steps))
    assert len({number for golden in version.manifest.golden for number in golden.raw}) > 4


@pytest.mark.slow
def test_an_engine_reproduces_the_scores_of_every_family(
    every_family: Callable[[str], Path],
) -> None:
    # What a server does with them before it is ready, in a process of its own.
    check = (
        "import sys; from pathlib import Path; from prm.registry import load_version; "
        "from prm.engine.residents import Device, Residents; "
        "versions = [load_version(Path(folder)) for folder in sys.argv[1:]]; "
        "Residents(Device()).load(versions)"
    )
    folders = [str(every_family(family)) for family in CHECKPOINTS]
    subprocess.run([sys.executable, "-P", "-c", check, *folders], check=True)


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
    # Nothing is left that was on its way; the lock of publishers stays.
    assert [path.name for path in root.rglob("*") if path.name.startswith(".")] == [LOCK]
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
