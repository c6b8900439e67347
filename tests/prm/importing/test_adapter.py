"""A LoRA adapter is imported onto a published base, and scores as its merged weights do."""

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
from tokenizers import AddedToken, Tokenizer

from prm.engine.residents import load_all
from prm.errors import InvalidInput, ModelFolderError
from prm.importing import Asked
from prm.importing.adapter import AdapterFolder
from prm.manifest import ModelVersion, PrmManifest
from prm.registry import Registry
from prm.scorer import Scorer
from prm.weights import ADAPTER, ADAPTER_CONFIG
from tests.adapters import PROJECTIONS, edit, edit_tensors, save_adapter, stage_base
from tests.checkpoints import stage_llama_chat
from tests.imports import imported
from tests.published import LocalBackend, publish_policy, score_items

pytestmark = pytest.mark.anyio

# At this β the raw numbers are log-ratios themselves, some tens large.
AS_PRM: dict[str, Any] = {
    "name": "prm",
    "reference": "base",
    "asked": Asked(settings={"beta": 1.0}),
}
ITEMS = [("1+1", ["2", "Answer: 2"]), ("Evaluate (3+4)*2-5", ["3+4=7", "x" * 40, "9"])]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder with a base, and an adapter trained on it. Neither is to be changed."""
    folder = tmp_path_factory.mktemp("adapter")
    base = publish_policy(folder / "models", "base", stage_base)
    save_adapter(base.folder, folder / "my-lora", target_modules=PROJECTIONS)
    return folder / "models", folder / "my-lora"


@pytest.fixture
def adapter(places: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of that adapter, to be changed."""
    return shutil.copytree(places[1], tmp_path / "my-lora")


def base_of(models: Path) -> ModelVersion:
    base = Registry.open(models).get("base")
    assert base is not None
    return base


@pytest.mark.slow
async def test_an_adapter_scores_as_its_merged_weights_beside_the_same_reference(
    tmp_path: Path,
) -> None:
    staged, root = tmp_path / "tiny-base", tmp_path / "models"
    stage_base(staged)
    imported(staged, root, name="base", is_policy=True)
    peft = save_adapter(staged, tmp_path / "my-lora", target_modules=PROJECTIONS)
    done = imported(tmp_path / "my-lora", root, **AS_PRM)

    merged = tmp_path / "merged"
    peft.merge_and_unload().save_pretrained(str(merged))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(staged / name, merged / name)
    whole = Asked(family="implicit", settings={"beta": 1.0})
    imported(merged, root, name="merged", asked=whole, reference="base")

    registry = Registry.open(root)
    prm, two, base = (registry.get(name) for name in ("prm", "merged", "base"))
    assert prm is not None
    assert two is not None
    assert base is not None
    assert isinstance(prm.manifest, PrmManifest)
    assert prm.manifest.recipe["adapter"] is True
    assert prm.manifest.recipe["reference"]["weights_sha256"] == base.weights_sha256
    assert prm.manifest.golden == done.manifest.golden
    assert not (prm.folder / "model.safetensors").exists()
    assert done.num_bytes < 0.5 * sum(record.bytes for record in two.manifest.files.values())
    assert done.detected is not None
    assert done.detected.evidence == "a LoRA adapter of rank 4 on 14 layers of base@1"
    for ours, theirs in zip(prm.manifest.golden, two.manifest.golden, strict=True):
        assert ours.raw == pytest.approx(theirs.raw, abs=1e-4)
    assert max(abs(raw) for golden in prm.manifest.golden for raw in golden.raw) > 1

    models = load_all([prm, two, base])
    rewards = []
    for version in (prm, two):
        scored = await score_items(Scorer(version, LocalBackend(models)), ITEMS)
        rewards.append([item.tokens.rewards for item in scored if item.tokens is not None])
    assert len(rewards[0]) == len(rewards[1]) == len(ITEMS)
    for per_token, expected in zip(*rewards, strict=True):
        assert per_token == pytest.approx(expected, abs=1e-4)
    # What a server does with them before it is ready, golden scores and all.
    check = (
        "import sys; from pathlib import Path; from prm.registry import load_version; "
        "from prm.engine.residents import Device, Residents; "
        "Residents(Device()).load([load_version(Path(f)) for f in sys.argv[1:]])"
    )
    folders = [str(version.folder) for version in (prm, base)]
    subprocess.run([sys.executable, "-P", "-c", check, *folders], check=True)


REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "another method": (
        edit(ADAPTER_CONFIG, peft_type="IA3"),
        {},
        r"adapter_config\.json: peft_type 'IA3' is not run; only LORA is; merge it into its base",
    ),
    "no method": (
        lambda f: (f / ADAPTER_CONFIG).write_text("{}"),
        {},
        r"adapter_config\.json: names no peft_type",
    ),
    "a token classifier's": (
        edit(ADAPTER_CONFIG, task_type="TOKEN_CLS"),
        {},
        r"only CAUSAL_LM is; merge it .* and import that with --recipe trl, h4 or pure",
    ),
    "a reward model's": (
        edit(ADAPTER_CONFIG, task_type="SEQ_CLS"),
        {},
        r"import that with --family outcome",
    ),
    "trained biases": (edit(ADAPTER_CONFIG, bias="all"), {}, r"bias 'all' is not run; only none"),
    "no base": (
        edit(ADAPTER_CONFIG, base_model_name_or_path="Qwen/Qwen2.5-Math-7B-Instruct"),
        {"reference": None},
        r"a published base \(of 'Qwen/Qwen2\.5-Math-7B-Instruct', says .*; import that model "
        r"first \(rung models import BASE --name NAME --policy\), and name it with --reference",
    ),
    "no reference": (lambda f: None, {"reference": "none"}, r"is run on a published base"),
    "a base that nobody published": (
        lambda f: None,
        {"reference": "nobody@1"},
        r"models/nobody/1/STABLE: missing",
    ),
    "a base's folder": (
        lambda f: None,
        {"reference": "./base"},
        r"'\./base' is not NAME@VERSION.*rung models import FOLDER --name NAME --policy",
    ),
    "no beta": (lambda f: None, {"asked": Asked()}, r"nothing in its files tells its β; name --b"),
    "another family": (
        lambda f: None,
        {"asked": Asked(recipe="math-shepherd")},
        r"implicit alone is run as one; merge it .* import that with --family math_shepherd",
    ),
    "a policy": (
        lambda f: None,
        {"is_policy": True, "asked": Asked(), "reference": None},
        r"holds a LoRA adapter and no model that writes; merge it",
    ),
    "said to be whole": (
        lambda f: None,
        {"asked": Asked(settings={"beta": 1.0, "adapter": False})},
        r"--set adapter=false: told from the folder, which holds an adapter",
    ),
    "whole weights beside it": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        {},
        r"holds a whole model \(model\.safetensors\) and an adapter",
    ),
    "no weights": (
        lambda f: (f / ADAPTER).unlink(),
        {},
        r"adapter_model\.safetensors: missing, and adapter_config\.json is there",
    ),
    "weights that are none": (
        lambda f: (f / ADAPTER).write_bytes(b"{}"),
        {},
        r"adapter_model\.safetensors: not a readable safetensors file",
    ),
    "a larger vocabulary": (
        edit_tensors(
            lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.zeros(999, 32)})
        ),
        {},
        r"fit base@1: tensor .*embed_tokens\.weight \[999, 32\] does not go with .* \[261, 32\]"
        r".* A base whose vocabulary was resized has to be published so",
    ),
    "a wider base": (
        edit_tensors(
            lambda t: t.update(
                {
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(
                        4, 64
                    )
                }
            )
        ),
        {},
        r"q_proj\.lora_A\.weight \[4, 64\] does not go with model\..*q_proj\.weight \[32, 32\]",
    ),
    "a deeper base": (
        edit_tensors(
            lambda t: t.update(
                {
                    "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(
                        4, 32
                    )
                }
            )
        ),
        {},
        r"q_proj\.lora_A\.weight is for model\.layers\.7\.self_attn\.q.*, which is not there",
    ),
    "another rank": (edit(ADAPTER_CONFIG, r=8), {}, r"is of rank 4, and .* says r 8"),
    "another configuration": (
        lambda f: (f / "config.json").write_text(
            '{"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 1024}'
        ),
        {},
        r"config\.json: .* in the adapter's base base@1",
    ),
    "another tokenizer": (
        lambda f: _add_token(f / "tokenizer.json"),
        {},
        r"tokenizer\.json: is not the tokenizer of its base base@1.*remove this file",
    ),
}


def _add_token(path: Path) -> None:
    stage_tokenizer(path.parent)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken("<extra_0>", special=True)])
    tokenizer.save(str(path))


def stage_tokenizer(folder: Path) -> None:
    """The base's tokenizer, in this folder as well."""
    from training.tokenizer import save_tokenizer

    save_tokenizer(folder, context_limit=1024)


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused_before_any_weights_are_loaded(
    places: tuple[Path, Path], adapter: Path, case: str
) -> None:
    change, options, message = REFUSED[case]
    change(adapter)
    with pytest.raises((ModelFolderError, InvalidInput), match=message) as error:
        # A device that refuses any weights in other words.
        imported(adapter, places[0], device="nonsense", **{**AS_PRM, **options})
    assert "rung-import-" not in str(error.value)
    assert not (places[0] / "prm").exists()


def test_a_whole_model_is_not_made_an_adapter_by_a_setting(tmp_path: Path) -> None:
    stage_llama_chat(tmp_path / "chat")
    asked = Asked(family="implicit", settings={"beta": 1.0, "adapter": True})
    with pytest.raises(InvalidInput, match=r"--set adapter=true: .* which holds a whole model"):
        imported(tmp_path / "chat", tmp_path / "models", asked=asked)


@pytest.mark.slow
def test_what_only_the_engine_can_tell_is_told_by_the_engine(
    places: tuple[Path, Path], adapter: Path
) -> None:
    edit(ADAPTER_CONFIG, target_modules=["c_attn"])(adapter)
    with pytest.raises(
        ModelFolderError, match=r"my-lora/adapter_config\.json: does not fit its base: .*c_attn"
    ):
        imported(adapter, places[0], **AS_PRM)
    assert not (places[0] / "prm").exists()


def test_a_version_takes_from_its_base_what_the_folder_has_not(
    places: tuple[Path, Path], adapter: Path
) -> None:
    base = base_of(places[0])
    opened = AdapterFolder.open(adapter)
    assert opened is not None
    files = opened.files(base)
    assert sorted(files.paths) == [
        ADAPTER_CONFIG,
        ADAPTER,
        "chat_template.jinja",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert {name for name, path in files.paths.items() if path.parent == adapter.resolve()} == {
        ADAPTER,
        ADAPTER_CONFIG,
    }
    assert list(files.left_behind) == ["README.md"]
    lent = "of its base base@1: chat_template.jinja, config.json, tokenizer.json, tokenizer_conf"
    assert files.notes[0].startswith(lent)


def test_a_chat_template_of_the_adapter_s_own_is_kept_with_its_tokenizer_configuration(
    places: tuple[Path, Path], adapter: Path
) -> None:
    base = base_of(places[0])
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    opened = AdapterFolder.open(adapter)
    assert opened is not None
    paths = opened.files(base).paths
    assert paths["chat_template.jinja"].parent == adapter.resolve()
    assert paths["tokenizer_config.json"].parent == base.folder.resolve()
    # Trained with a template in the configuration: the base's must not stand in front of it.
    stage_tokenizer(adapter)
    (adapter / "chat_template.jinja").unlink()
    paths = opened.files(base).paths
    assert paths["tokenizer_config.json"].parent == adapter.resolve()
    assert "chat_template.jinja" not in paths


def test_the_same_tokenizer_written_otherwise_is_the_base_s(
    places: tuple[Path, Path], adapter: Path
) -> None:
    stage_tokenizer(adapter)
    path = adapter / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding()
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), indent=4))
    opened = AdapterFolder.open(adapter)
    assert opened is not None
    base = base_of(places[0])
    assert opened.files(base).paths["tokenizer.json"] == (base.folder / "tokenizer.json").resolve()


def test_another_base_by_name_is_told_and_its_path_is_not_followed(
    places: tuple[Path, Path], adapter: Path, tmp_path: Path
) -> None:
    def notes(named: str, origin: str) -> list[str]:
        edit(ADAPTER_CONFIG, base_model_name_or_path=named)(adapter)
        opened = AdapterFolder.open(adapter)
        assert opened is not None
        base = base_of(places[0])
        training = {"imported_from": origin}
        manifest = base.manifest.model_copy(update={"training": training})
        return list(opened.files(ModelVersion(base.folder, manifest)).notes[1:])

    assert notes("Qwen/Qwen2.5-7B", "Qwen2.5-7B") == []
    assert notes("/data/Qwen2.5-7B/", "Qwen/Qwen2.5-7B@0610740") == []
    (said,) = notes(str(tmp_path), "Qwen2.5-7B")
    assert "be sure that the weights are the same" in said
    assert notes(str(tmp_path), "") == []


@pytest.mark.slow
def test_a_pickled_adapter_is_converted_by_the_remedy(adapter: Path) -> None:
    tensors = load_file(adapter / ADAPTER)
    (adapter / ADAPTER).unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    with pytest.raises(ModelFolderError, match=r"pickles \(adapter_model\.bin\)") as error:
        AdapterFolder.open(adapter)
    program, *arguments = shlex.split(str(error.value).splitlines()[-1].strip())
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    again = load_file(adapter / ADAPTER)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert AdapterFolder.open(adapter) is not None
