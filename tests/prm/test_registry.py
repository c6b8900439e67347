"""A model folder is served whole, verified and free of code, or refused with the file's name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from prm.engine.model import CausalLM
from prm.errors import ModelFolderError
from prm.files import hash_file
from prm.manifest import PrmManifest
from prm.registry import Registry, load_version, publish
from tests.factories import POLICY, PRM


@pytest.fixture
def root(tiny_models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_models, tmp_path / "models")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_published_folder_opens(root: Path) -> None:
    registry = Registry.open(root)
    assert sorted(version.key for version in registry) == [f"{POLICY}@1", f"{PRM}@1"]
    by_name, by_key = registry.get(PRM), registry.get(f"{PRM}@1")
    assert by_name is not None
    assert by_key is by_name
    assert isinstance(by_name.manifest, PrmManifest)
    assert [v.key for v in registry.references_of(by_name)] == [f"{POLICY}@1"]
    assert registry.get("nope") is registry.get(f"{PRM}@2") is registry.get("../x") is None


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "infinite golden score": (
        lambda v: (v / "manifest.json").write_text(
            re.sub(r'("raw": \[\s*)[-0-9.e]+', r"\1Infinity", (v / "manifest.json").read_text())
        ),
        r"manifest\.json: field .*raw.*finite",
    ),
    "nested without end": (
        lambda v: (v / "manifest.json").write_text("[" * 200_000),
        r"manifest\.json: not valid JSON",
    ),
    "a stray file": (lambda v: (v / "adapter.json").write_text("{}"), r"adapter\.json: not listed"),
    "another tokenizer": (
        lambda v: _relist(v, "tokenizer.json", (v / "tokenizer.json").read_text() + " "),
        r"tokenizer\.json: differs from that of its reference",
    ),
    "no marker": (lambda v: (v / "STABLE").unlink(), r"STABLE: missing"),
    "no weights": (lambda v: (v / "model.safetensors").unlink(), r"model\.safetensors: missing"),
    "no config": (lambda v: (v / "config.json").unlink(), r"config\.json: missing"),
    "no tokenizer": (lambda v: (v / "tokenizer.json").unlink(), r"tokenizer\.json: missing"),
    "no manifest": (lambda v: (v / "manifest.json").unlink(), r"manifest\.json: missing"),
    "flipped byte": (
        lambda v: _flip_byte(v / "model.safetensors"),
        r"model\.safetensors: its SHA-256 is",
    ),
    "shortened": (
        lambda v: (v / "model.safetensors").write_bytes(b"x"),
        r"model\.safetensors: 1 bytes, but manifest\.json says",
    ),
    "pickle": (lambda v: (v / "pytorch_model.bin").write_bytes(b"x"), r"bin: a pickle-based"),
    "code": (lambda v: (v / "modeling.py").write_text("x"), r"modeling\.py: .* never run"),
    "unknown family": (
        lambda v: edit_json(v / "manifest.json", family="tarot"),
        r"family 'tarot' is not one of implicit",
    ),
    "wrong architecture": (
        lambda v: edit_json(v / "config.json", architectures=["Qwen2ForTokenClassification"]),
        r"config\.json: architecture Qwen2ForTokenClassification does not fit family 'implicit'",
    ),
    "unknown field": (
        lambda v: edit_json(v / "manifest.json", colour="red"),
        r"manifest\.json: field .*colour",
    ),
    "escaping file name": (
        lambda v: edit_json(
            v / "manifest.json",
            files=json.loads((v / "manifest.json").read_text())["files"]
            | {"../../secret": {"bytes": 1, "sha256": "0" * 64}},
        ),
        r"is not a plain file name",
    ),
    "another name": (
        lambda v: edit_json(v / "manifest.json", name="other"),
        r"says other@1, but lies under tiny-prm/1",
    ),
    "impossible recipe": (
        lambda v: edit_json(v / "manifest.json", recipe={"name": "implicit", "beta": -1}),
        r"manifest\.json: field recipe\.beta: Input should be greater than 0",
    ),
    "another reference": (
        lambda v: edit_json(
            v / "manifest.json",
            recipe={
                "name": "implicit",
                "beta": 0.5,
                "reference": {"name": POLICY, "version": "1", "weights_sha256": "0" * 64},
            },
        ),
        r"is not the reference that tiny-prm@1 was trained against",
    ),
}


def _relist(version: Path, name: str, content: str) -> None:
    """Change a file and the manifest with it, as a careless publisher would."""
    (version / name).write_text(content)
    files = json.loads((version / "manifest.json").read_text())["files"]
    files[name] = {"bytes": len(content.encode()), "sha256": hash_file(version / name)}
    edit_json(version / "manifest.json", files=files)


def _flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_version_is_refused_by_the_file_that_is_wrong(root: Path, name: str) -> None:
    damage, message = BREAKAGES[name]
    damage(root / PRM / "1")
    with pytest.raises(ModelFolderError, match=message):
        Registry.open(root)


def test_an_empty_and_a_missing_root_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no model in it"):
        Registry.open(tmp_path)
    with pytest.raises(ModelFolderError, match="no such folder"):
        Registry.open(tmp_path / "nope")


def test_a_version_is_never_published_twice(root: Path, tmp_path: Path) -> None:
    version = load_version(root / POLICY / "1")
    staged = shutil.copytree(version.folder, tmp_path / "staged")
    with pytest.raises(FileExistsError, match="already published"):
        publish(root, staged, version.manifest)


def test_weights_in_shards_are_one_version(root: Path, tmp_path: Path) -> None:
    whole = load_version(root / POLICY / "1")
    staged = shutil.copytree(whole.folder, tmp_path / "staged")
    for name in ("STABLE", "model.safetensors"):
        (staged / name).unlink()
    AutoModelForCausalLM.from_pretrained(whole.folder).save_pretrained(
        staged, max_shard_size="10KB"
    )
    sharded = publish(root, staged, whole.manifest.model_copy(update={"version": "2"}))
    assert len(list(sharded.folder.glob("*.safetensors"))) > 1
    assert sharded.weights_sha256 != whole.weights_sha256
    ours, theirs = (CausalLM.load(v.folder).logprobs([[1, 2, 3]], [1]) for v in (sharded, whole))
    assert ours[0].tolist() == theirs[0].tolist()
    next(sharded.folder.glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(ModelFolderError, match=r"model-00002-of-.*\.safetensors: missing"):
        load_version(sharded.folder)


def test_publishing_moves_the_pointer(root: Path, tmp_path: Path) -> None:
    old = load_version(root / POLICY / "1")
    staged = shutil.copytree(old.folder, tmp_path / "staged")
    (staged / "STABLE").unlink()
    publish(root, staged, old.manifest.model_copy(update={"version": "2"}))
    registry = Registry.open(root)
    live = registry.get(POLICY)
    assert live is not None
    assert live.key == f"{POLICY}@2"
    # The PRM still pins version 1 as its reference, so that one stays loaded.
    assert registry.get(f"{POLICY}@1") is not None
    assert not list((root / POLICY).glob(".publish-*"))
