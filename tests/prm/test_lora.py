"""One base with its adapters on and off, against peft's own forward and against merged weights."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from prm.engine.client import EngineClient
from prm.engine.lora import BaseLM
from prm.engine.model import CausalLM
from prm.engine.process import EngineOptions
from prm.errors import ModelFolderError
from prm.families.base import LogprobRead
from prm.families.implicit import SPEC, ImplicitRecipe
from prm.manifest import ModelRef, ModelVersion
from prm.registry import Registry, read_version
from prm.scorer import Scorer
from prm.weights import ADAPTER, ADAPTER_CONFIG
from tests.adapters import PROJECTIONS, edit, edit_tensors, lend_files, save_adapter, stage_base
from tests.published import LocalBackend, publish_policy, publish_prm, score_items

pytestmark = pytest.mark.anyio

IDS: Sequence[Sequence[int]] = (list(range(40, 90)), [3, 5], list(range(200, 230)))
FORMS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "everything": {"target_modules": PROJECTIONS, "lora_dropout": 0.5},
    "rank patterns": {
        "target_modules": PROJECTIONS,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"k_proj": 32},
        "use_rslora": True,
    },
    "some layers": {"target_modules": PROJECTIONS, "layers_to_transform": [1]},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "bias": {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    "head by rank": {"target_modules": ["q_proj", "lm_head"]},
    "head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "norms saved": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
    "embeddings by rank": {"target_modules": ["q_proj", "embed_tokens"]},
    "some embeddings": {"target_modules": ["q_proj"], "trainable_token_indices": [50, 51, 52]},
    "embeddings saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    stage_base(folder)
    return folder


def literal(model: torch.nn.Module, ids: Sequence[int]) -> list[float]:
    """log p(ids[t] | ids[:t]) of every t ≥ 1 by a plain forward."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [table[t - 1, ids[t]].item() for t in range(1, len(ids))]


def read(model: CausalLM) -> list[list[float]]:
    return [row.tolist() for row in model.logprobs(IDS, [1] * len(IDS))]


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_is_read_as_peft_reads_it_and_the_base_as_if_it_were_not_there(
    base: Path, tmp_path: Path, form: str
) -> None:
    peft = save_adapter(base, tmp_path, **FORMS[form])
    plain = read(CausalLM.load(base))
    shared = BaseLM.load(base)
    adapted = shared.attach(tmp_path)
    for _ in range(2):
        ours = read(adapted)
        for row, ids in zip(ours, IDS, strict=True):
            assert row == pytest.approx(literal(peft, ids), abs=1e-4)
        assert read(shared) == plain
    assert ours[0] != pytest.approx(plain[0], abs=0.1)


@pytest.mark.parametrize("form", ["everything", "rank patterns", "dora", "head by rank"])
def test_an_adapter_is_read_as_its_merged_weights(base: Path, tmp_path: Path, form: str) -> None:
    peft = save_adapter(base, tmp_path / "adapter", **FORMS[form])
    merged = peft.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    theirs = read(CausalLM.load(tmp_path / "merged"))
    ours = read(BaseLM.load(base).attach(tmp_path / "adapter"))
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


def test_a_head_tied_to_the_embeddings_is_peft_s_as_well(tmp_path: Path) -> None:
    stage_base(tmp_path, tied=True)
    forms = ["everything", "head saved", "head by rank", "embeddings by rank", "some embeddings"]
    for number, form in enumerate(forms):
        peft = save_adapter(tmp_path, tmp_path / str(number), seed=number, **FORMS[form])
        shared = BaseLM.load(tmp_path)
        adapted = shared.attach(tmp_path / str(number))
        for row, ids in zip(read(adapted), IDS, strict=True):
            assert row == pytest.approx(literal(peft, ids), abs=1e-4)
        assert read(shared) == read(CausalLM.load(tmp_path))


def test_two_adapters_share_a_base_and_nothing_else(base: Path, tmp_path: Path) -> None:
    forms = ("everything", "head saved")
    alone = []
    for number, form in enumerate(forms):
        save_adapter(base, tmp_path / str(number), seed=number, **FORMS[form])
        alone.append(read(BaseLM.load(base).attach(tmp_path / str(number))))
    plain = read(CausalLM.load(base))
    shared = BaseLM.load(base)
    first, second = (shared.attach(tmp_path / str(number)) for number in range(2))
    for model, expected in [
        (second, alone[1]),
        (first, alone[0]),
        (shared, plain),
        (second, alone[1]),
        (shared, plain),
        (first, alone[0]),
    ]:
        assert read(model) == expected
    weights = {p.data_ptr() for p in shared._body.parameters()}
    assert {p.data_ptr() for p in first._body.parameters()} == weights


def test_weights_in_bfloat16_take_an_adapter(base: Path, tmp_path: Path) -> None:
    peft = save_adapter(base, tmp_path, **FORMS["everything"])
    shared = BaseLM.load(base, dtype=torch.bfloat16)
    adapted = shared.attach(tmp_path)
    rows = read(adapted)
    assert read(shared) == read(CausalLM.load(base, dtype=torch.bfloat16))
    error = torch.tensor(rows[0]) - torch.tensor(literal(peft, IDS[0]))
    assert error.abs().mean() < 0.5


def _write_nonsense(folder: Path) -> None:
    (folder / ADAPTER).write_bytes(b"{}")


QUERY = torch.zeros(32, 32)
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another method": (edit(ADAPTER_CONFIG, peft_type="IA3"), "peft_type 'IA3' is not run; only L"),
    "another task": (edit(ADAPTER_CONFIG, task_type="SEQ_CLS"), "task_type 'SEQ_CLS' is not run"),
    "trained biases": (edit(ADAPTER_CONFIG, bias="all"), "bias 'all' is not run; only none is"),
    "a base made smaller": (
        edit(ADAPTER_CONFIG, init_lora_weights="pissa"),
        "init_lora_weights 'pissa' is not run",
    ),
    "layers repeated": (edit(ADAPTER_CONFIG, layer_replication=[[0, 2]]), "layer_replication is s"),
    "on after some tokens": (
        edit(ADAPTER_CONFIG, alora_invocation_tokens=[1]),
        "alora_invocation_tokens is set",
    ),
    "a setting of tomorrow": (edit(ADAPTER_CONFIG, use_magic=True), "use_magic is set"),
    "no such layer": (
        edit(ADAPTER_CONFIG, target_modules=["c_attn"]),
        "does not fit its base: .*c_attn",
    ),
    "another rank": (edit(ADAPTER_CONFIG, r=8), r"\[4, 32\], and .* asks for \[8, 32\]"),
    "a tensor too few": (
        edit_tensors(lambda t: t.pop(sorted(t)[0])),
        "the file has none, and",
    ),
    "a tensor too many": (
        edit_tensors(lambda t: t.update({"base_model.model.extra": torch.zeros(1)})),
        r"extra: the file has \[1\], and .* asks for none",
    ),
    "a base that was trained": (
        edit_tensors(
            lambda t: t.update(
                {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": QUERY + 1}
            )
        ),
        "q_proj.base_layer.weight is not the base's",
    ),
    "no safetensors": (_write_nonsense, "not a readable safe"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_would_be_computed_wrongly_is_refused_by_name(
    base: Path, tmp_path: Path, case: str
) -> None:
    save_adapter(base, tmp_path, **FORMS["attention"])
    change, message = REFUSED[case]
    change(tmp_path)
    with pytest.raises(ModelFolderError, match=message):
        BaseLM.load(base).attach(tmp_path)


def publish_pair(root: Path, form: str, **recipe: Any) -> tuple[ModelVersion, ModelVersion]:
    """A base policy, and an implicit PRM that is an adapter on it."""
    policy = publish_policy(root, "base", stage_base)
    reference = ModelRef(name="base", version="1", weights_sha256=policy.weights_sha256)
    settings = {"beta": 0.05, "reference": reference, "adapter": True} | recipe

    def stage(folder: Path) -> None:
        save_adapter(policy.folder, folder, **FORMS[form])
        lend_files(policy.folder, folder)

    family = ImplicitRecipe.model_validate(settings)
    return publish_prm(root, "prm", SPEC.name, family, stage), policy


def publish_proven_pair(root: Path, form: str) -> tuple[ModelVersion, ModelVersion]:
    """The same with golden scores that come out, so that an engine takes them."""
    prm, policy = publish_pair(root, form)
    for version in (policy, prm):
        path = version.folder / "manifest.json"
        content = json.loads(path.read_text())
        shared = BaseLM.load(policy.folder)
        content["golden"][0]["raw"] = [golden_value(version, shared, prm)]
        path.write_text(json.dumps(content))
    return read_version(prm.folder), read_version(policy.folder)


async def test_an_implicit_prm_is_a_base_with_its_adapter_on_over_it_off(tmp_path: Path) -> None:
    prm, policy = publish_pair(tmp_path, "everything")
    shared = BaseLM.load(policy.folder)
    models: dict[str, CausalLM] = {policy.key: shared, prm.key: shared.attach(prm.folder)}
    items = [("1+1", ["2", "Answer: 2"]), ("Evaluate (3+4)*2-5", ["3+4=7", "x" * 40, "9"])]
    for scored in await score_items(Scorer(prm, LocalBackend(models)), items):
        assert scored.tokens is not None
        trajectory = scored.trajectory
        prompt = f"<|user|>{trajectory.messages[0].content}<|end|><|assistant|>"
        peft = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(policy.folder), prm.folder
        )
        ids = [257, *prompt[8:-20].encode(), 256, 258, *trajectory.response.encode()]
        on = literal(peft, ids)
        with peft.disable_adapter():
            off = literal(peft, ids)
        count = len(scored.tokens.ids)
        expected = [0.05 * (a - b) for a, b in zip(on[-count:], off[-count:], strict=True)]
        assert scored.tokens.rewards == pytest.approx(expected, abs=1e-4)
        assert max(map(abs, expected)) > 1e-2


@pytest.mark.slow
async def test_a_registry_serves_an_adapter_from_one_engine(tmp_path: Path) -> None:
    prm, policy = publish_proven_pair(tmp_path, "head by rank")
    registry = Registry.open(tmp_path)
    client = EngineClient([v.folder for v in registry], EngineOptions(threads=1))
    client.start()
    try:
        await client.wait_settled()
        reads = [LogprobRead(model=v.key, ids=tuple(IDS[0]), first=1) for v in (prm, policy, prm)]
        outputs = (await client.read(reads)).outputs
        shared = BaseLM.load(policy.folder)
        adapted, plain = shared.attach(prm.folder), CausalLM.load(policy.folder)
        assert outputs[0].values == pytest.approx(read(adapted)[0], abs=1e-4)
        assert outputs[1].values == pytest.approx(read(plain)[0], abs=1e-4)
        assert outputs[2].values == outputs[0].values
    finally:
        await client.close()


def golden_value(version: ModelVersion, shared: BaseLM, prm: ModelVersion) -> float:
    """The one golden number of a version: see `prm.engine.golden`."""
    ids = [[257, 49, 256, 258, 50]]
    base = float(shared.logprobs(ids, [4])[0])
    if version is not prm:
        return base
    return 0.05 * (float(shared.attach(prm.folder).logprobs(ids, [4])[0]) - base)


def relist(folder: Path) -> None:
    """Make the manifest list what lies there."""
    from prm.files import hash_file

    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["files"] = {
        p.name: {"bytes": p.stat().st_size, "sha256": hash_file(p)}
        for p in folder.iterdir()
        if p.name not in ("manifest.json", "STABLE")
    }
    path.write_text(json.dumps(content))


MISPLACED: dict[str, tuple[Callable[[Path], object], str]] = {
    "recipe without adapter": (
        lambda prm: _edit_recipe(prm, adapter=False),
        r"adapter_config\.json: an adapter is served by family 'implicit' with adapter: true",
    ),
    "whole weights beside it": (
        lambda prm: shutil.copy(prm.parents[1] / "base" / "1" / "model.safetensors", prm),
        r"model\.safetensors: weights beside an adapter's",
    ),
    "no adapter there": (
        lambda prm: (prm / ADAPTER_CONFIG).unlink(),
        r"adapter_config\.json: missing; the recipe says that the weights are an adapter",
    ),
    "no adapter weights": (
        lambda prm: (prm / ADAPTER).unlink(),
        r"adapter_model\.safetensors: missing",
    ),
    "another configuration": (
        edit("config.json", rms_norm_eps=1e-2),
        r"config\.json: rms_norm_eps is 0\.01, and 1e-06 in the adapter's base base@1",
    ),
}


def _edit_recipe(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["recipe"] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("case", MISPLACED)
def test_a_folder_that_is_half_an_adapter_is_refused(tmp_path: Path, case: str) -> None:
    prm, _ = publish_pair(tmp_path, "attention")
    change, message = MISPLACED[case]
    change(prm.folder)
    relist(prm.folder)
    with pytest.raises(ModelFolderError, match=message):
        Registry.open(tmp_path)


def test_another_scale_is_another_version(tmp_path: Path) -> None:
    prm, _ = publish_pair(tmp_path, "attention")
    edit(ADAPTER_CONFIG, lora_alpha=32)(prm.folder)
    relist(prm.folder)
    registry = Registry.open(tmp_path)
    changed = registry.get("prm")
    assert changed is not None
    assert changed.weights_sha256 != prm.weights_sha256
