"""Heads of a checkpoint's own: what is refused when one is missing, misshapen or left over."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prm.engine.attention import WholeSequences
from prm.engine.heads import HeadModel, load_model
from prm.engine.model import CausalLM
from prm.errors import ModelFolderError
from prm.families.base import HeadLayout
from prm.families.implicit import ImplicitRecipe
from prm.families.qwen import HEAD, QwenRecipe
from prm.manifest import ModelRef
from tests.layouts import QWEN_CONTROL, QWEN_TEMPLATE, byte_level_layout, save_layout
from tests.own_heads import (
    ProcessRewardModel,
    load_literal,
    qwen_layout,
    random_head,
    save_checkpoint,
    stage_qwen,
)
from tests.published import publish_policy, publish_prm, random_lm

IDS = [[5, 9, 3, 7, 11], [2], [40, 41, 42]]
ONE_LAYER = HeadLayout(prefix="score", outputs=2)
CLASS = "Qwen2ForProcessRewardModel"


def save(folder: Path, head: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    head = random_head(HEAD, size=32) if head is None else head
    save_checkpoint(folder, head, architecture=CLASS, vocab=64, config={"num_labels": 2})
    return head


def rewrite(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace tensors of a saved checkpoint, or take them out."""
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def values(model: HeadModel, ids: list[list[int]] = IDS) -> Tensor:
    packed = torch.tensor([token for sequence in ids for token in sequence])
    hidden = model.hidden(packed, WholeSequences([len(s) for s in ids], model.device))
    return model.head_values(hidden)


def test_values_of_a_packed_batch_are_those_of_the_authors_class(tmp_path: Path) -> None:
    save(tmp_path)
    reference = load_literal(ProcessRewardModel, tmp_path)
    with torch.no_grad():
        expected = torch.cat([reference(torch.tensor([s]))[0] for s in IDS])
    found = values(HeadModel.load(tmp_path, HEAD))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_weights_in_shards_give_the_same_values(tmp_path: Path) -> None:
    save(tmp_path)
    whole = values(HeadModel.load(tmp_path, HEAD))
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(3):
        shard = f"model-{number}.safetensors"
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, tmp_path / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(values(HeadModel.load(tmp_path, HEAD)), whole)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_the_bodys_tensors_may_have_their_prefix_or_none(tmp_path: Path, prefix: str) -> None:
    save(tmp_path)
    expected = values(HeadModel.load(tmp_path, HEAD))
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(values(HeadModel.load(tmp_path, HEAD)), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_is_applied_where_the_head_has_one(tmp_path: Path, bias: bool) -> None:
    layout = HeadLayout(prefix="score", outputs=2, bias=bias)
    head = save(tmp_path, random_head(layout, size=32))
    model = HeadModel.load(tmp_path, layout)
    hidden = torch.zeros(1, 32)
    expected = head["score.bias"] if bias else torch.zeros(2)
    assert torch.equal(model.head_values(hidden)[0], expected)


def test_a_body_in_bfloat16_keeps_its_head_in_float32(tmp_path: Path) -> None:
    head = save(tmp_path)
    model = HeadModel.load(tmp_path, HEAD, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    packed = torch.tensor(IDS[0])
    hidden = model.hidden(packed, WholeSequences([len(packed)], model.device))
    assert hidden.dtype == torch.bfloat16
    inner = torch.relu(hidden.float() @ head["score.0.weight"].T + head["score.0.bias"])
    expected = inner @ head["score.2.weight"].T + head["score.2.bias"]
    torch.testing.assert_close(model.head_values(hidden), expected, atol=1e-5, rtol=0)


def test_remote_code_named_by_a_configuration_is_neither_run_nor_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> str:
        raise AssertionError("somebody was asked whether to trust remote code")

    monkeypatch.setattr("builtins.input", never)
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
        "AutoModel": f"modeling_qwen2_rm.{CLASS}",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_qwen2_rm.py").write_text("raise SystemExit('remote code ran')")
    (tmp_path / "configuration_qwen2_rm.py").write_text("raise SystemExit('remote code ran')")
    assert values(HeadModel.load(tmp_path, HEAD)).shape == (9, 2)


@pytest.mark.parametrize(
    ("name", "shape"), [("score.0.weight", "[32, 32]"), ("score.2.bias", "[2]")]
)
def test_a_missing_head_tensor_is_refused_with_its_shape(
    tmp_path: Path, name: str, shape: str
) -> None:
    save(tmp_path)
    rewrite(tmp_path, {name: None})
    with pytest.raises(ModelFolderError) as caught:
        HeadModel.load(tmp_path, HEAD)
    assert f"the weights lack {name} {shape} of the recipe's head" in caught.value.reason


def test_a_head_of_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    save(tmp_path, random_head(HeadLayout(prefix="score", layers=("0", "2"), outputs=3), size=32))
    with pytest.raises(ModelFolderError) as caught:
        HeadModel.load(tmp_path, HEAD)
    assert caught.value.reason == (
        "score.2.weight has the shape [3, 32], and the recipe's head wants [2, 32]"
    )


@pytest.mark.parametrize("name", ["score.4.weight", "v_head.summary.weight", "model.layers.9.x"])
def test_a_tensor_left_over_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path)
    rewrite(tmp_path, {name: torch.zeros(2, 32)})
    with pytest.raises(ModelFolderError) as caught:
        HeadModel.load(tmp_path, HEAD)
    assert f"hold {name} [2, 32], which is neither of a Qwen2Model nor" in caught.value.reason


def test_a_bias_that_the_recipe_leaves_out_is_refused(tmp_path: Path) -> None:
    save(tmp_path, random_head(ONE_LAYER, size=32))
    without = HeadLayout(prefix="score", outputs=2, bias=False)
    with pytest.raises(ModelFolderError, match=r"hold score\.bias \[2\]"):
        HeadModel.load(tmp_path, without)


@pytest.mark.parametrize("layout", [HEAD, ONE_LAYER])
def test_a_language_model_is_never_read_as_a_prm(tmp_path: Path, layout: HeadLayout) -> None:
    model = random_lm("qwen2", vocab=64)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [CLASS]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=r"lack score\..* is another kind of model"):
        HeadModel.load(tmp_path, layout)


def test_a_prm_is_never_read_as_a_language_model(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(ModelFolderError, match=r"lack lm_head\.weight \[64, 32\]"):
        CausalLM.load(tmp_path)
    lm_head = random_lm("qwen2", vocab=64).state_dict()["lm_head.weight"]
    rewrite(tmp_path, {"lm_head.weight": lm_head})
    with pytest.raises(ModelFolderError, match=r"hold score\.0\.bias, .* no place for"):
        CausalLM.load(tmp_path)


def test_a_tensor_that_the_body_lacks_is_not_made_up(tmp_path: Path) -> None:
    save(tmp_path)
    rewrite(tmp_path, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(ModelFolderError, match=r"lack layers\.1\.mlp\.up_proj\.weight \[48, 32\]"):
        HeadModel.load(tmp_path, HEAD)


def test_constants_that_older_releases_wrote_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path)
    expected = values(HeadModel.load(tmp_path, HEAD))
    rewrite(tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    assert torch.equal(values(HeadModel.load(tmp_path, HEAD)), expected)


def test_settings_that_the_engine_does_not_apply_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_logit_softcapping": 30.0}))
    with pytest.raises(ModelFolderError, match="attn_logit_softcapping"):
        HeadModel.load(tmp_path, HEAD)


def stage_lm(folder: Path) -> None:
    tokenizer = byte_level_layout(QWEN_CONTROL)
    random_lm("qwen2", vocab=tokenizer.get_vocab_size()).save_pretrained(folder)
    save_layout(tokenizer, folder, template=QWEN_TEMPLATE, eos="<|im_end|>")


def test_a_version_is_loaded_as_its_family_reads_it(tmp_path: Path) -> None:
    recipe = QwenRecipe(marker_id=None)
    stage = stage_qwen(HEAD, qwen_layout("<extra_0>"), architecture=CLASS)
    qwen = publish_prm(tmp_path, "qwen", "qwen", recipe, stage)
    policy = publish_policy(tmp_path, "policy", stage_lm)
    reference = ModelRef(name="policy", version="1", weights_sha256=policy.weights_sha256)
    implicit = publish_prm(
        tmp_path, "implicit", "implicit", ImplicitRecipe(beta=0.1, reference=reference), stage_lm
    )
    assert isinstance(load_model(qwen), HeadModel)
    assert isinstance(load_model(policy), CausalLM)
    assert isinstance(load_model(implicit), CausalLM)


def test_a_family_is_refused_for_an_architecture_that_it_does_not_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="Qwen2ForCausalLM does not fit family 'qwen'"):
        publish_prm(tmp_path, "qwen", "qwen", QwenRecipe(), stage_lm)
