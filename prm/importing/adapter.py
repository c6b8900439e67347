"""A LoRA adapter's folder on its way to a version: an implicit PRM that is run on a published base.

peft saves weights and a configuration, and no model: `config.json` and the tokenizer are the
base's. The name of a base that `adapter_config.json` holds is told to the importer and never
followed: which weights a score is read off is his to say.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prm.adapter import MERGE, read_settings
from prm.errors import ModelFolderError
from prm.files import hash_file
from prm.importing.detection import Asked
from prm.importing.files import CheckpointFiles, left_behind, refuse_pickles
from prm.manifest import ModelVersion
from prm.weights import ADAPTER, ADAPTER_CONFIG, INDEX, WHOLE, stored_tensors

FAMILY = "implicit"
# How peft names the tensors of a layer; of each, the axis that is one of the layer's weight's, and
# which: the rest is the rank.
_LAYER = "base_model.model."
_AXES = {
    "lora_A.weight": (1, 1),
    "lora_B.weight": (0, 0),
    "lora_embedding_A": (1, 0),
    "lora_embedding_B": (0, 1),
}
# A chat template lies in its own file or in the tokenizer's configuration.
_TOKENIZER_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """An adapter as peft saved it, with settings that the engine runs."""

    folder: Path
    settings: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, folder: Path) -> "AdapterFolder | None":
        """The adapter in this folder, or None for whole weights.

        Raises ModelFolderError for one that is not run, and where it is not clear which it is.
        """
        if not (folder / ADAPTER_CONFIG).is_file():
            return None
        whole = [name for name in (WHOLE, INDEX) if (folder / name).is_file()]
        if whole and (folder / ADAPTER).is_file():
            raise ModelFolderError(
                folder,
                f"holds a whole model ({whole[0]}) and an adapter ({ADAPTER}), and nothing says "
                "which of them is the PRM; move the other one elsewhere",
            )
        if whole:
            return None
        settings = read_settings(folder)
        if not (folder / ADAPTER).is_file():
            refuse_pickles(folder, ADAPTER)
            raise ModelFolderError(folder / ADAPTER, f"missing, and {ADAPTER_CONFIG} is there")
        shapes = {name: tensor.shape for name, tensor in stored_tensors(folder).items()}
        return cls(folder=folder, settings=settings, shapes=shapes)

    def asked(self, asked: Asked, *, reference: str | None, is_policy: bool) -> Asked:
        """What is asked for, completed by what the folder says; raises what contradicts it."""
        if is_policy:
            raise ModelFolderError(
                self.folder, f"holds a LoRA adapter and no model that writes; {MERGE} first"
            )
        if asked.named not in (None, FAMILY):
            raise ModelFolderError(
                self.folder,
                f"holds a LoRA adapter, and of all families {FAMILY} alone is run as one; {MERGE} "
                f"and import that with --family {asked.named}, or import it as --family {FAMILY}",
            )
        if reference in (None, "none"):
            named = self.settings.get("base_model_name_or_path")
            raise ModelFolderError(
                self.folder,
                "holds a LoRA adapter, which is run on a published base"
                + (f" (of {named!r}, says {ADAPTER_CONFIG})" if named else "")
                + "; import that model first (rung models import BASE --name NAME --policy), and "
                "name it with --reference NAME@VERSION",
            )
        if "beta" not in asked.settings:
            raise ModelFolderError(
                self.folder,
                "holds a LoRA adapter, which is read as an implicit PRM, and nothing in its files "
                "tells its β; name --beta",
            )
        return Asked(
            family=FAMILY, recipe=asked.recipe, settings={**asked.settings, "adapter": True}
        )

    def files(self, base: ModelVersion) -> CheckpointFiles:
        """The adapter's files, and of its base what a version needs and the folder has not.

        Raises ModelFolderError for a tokenizer that is not the base's.
        """
        own = [ADAPTER, ADAPTER_CONFIG]
        lent = ["tokenizer.json"]
        self._check_tokenizer(base)
        (own if self._has("config.json") else lent).append("config.json")
        # The tokenizer's configuration says what the template beside it is given: both are one
        # folder's, but for a template of the adapter's own.
        (own if self._has(_TOKENIZER_CONFIG) else lent).append(_TOKENIZER_CONFIG)
        if self._has(_TEMPLATE):
            own.append(_TEMPLATE)
        elif _TOKENIZER_CONFIG in lent and (base.folder / _TEMPLATE).is_file():
            lent.append(_TEMPLATE)
        paths = {name: self.folder / name for name in own}
        paths |= {name: base.folder / name for name in lent}
        return CheckpointFiles(
            paths={name: path.resolve() for name, path in sorted(paths.items())},
            left_behind=left_behind(self.folder, own),
            notes=[f"of its base {base.key}: {', '.join(sorted(lent))}", *self._notes(base)],
        )

    def check_tensors(self, base: ModelVersion) -> None:
        """Raises ModelFolderError when a tensor's shape fits no layer of this base.

        Only what the headers of both tell, so that most mistakes are told before the weights are
        loaded; the engine then holds every tensor against what the configuration makes of the base.
        """
        stored = {name: tensor.shape for name, tensor in stored_tensors(base.folder).items()}
        kinds = {_kind(name) for name in stored}
        for name, shape in sorted(self.shapes.items()):
            layer, ours, axes = _part_of(name, shape)
            if layer in stored:
                theirs = [stored[layer][axis] for axis in self._turned(axes, name)]
                if ours != theirs:
                    raise self._misfit(base, self._unlike(name, layer, stored[layer]))
            elif _kind(layer) in kinds:
                raise self._misfit(base, f"tensor {name} is for {layer}, which is not there")
        self._check_rank()

    def evidence(self, base: ModelVersion) -> str:
        """In words, what its files say that it is."""
        layers = {name.rpartition(".lora_")[0] for name in self.shapes if ".lora_" in name}
        rank = self.settings.get("r", "unknown")
        return f"a LoRA adapter of rank {rank} on {len(layers)} layers of {base.key}"

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def _check_tokenizer(self, base: ModelVersion) -> None:
        path, theirs = (folder / "tokenizer.json" for folder in (self.folder, base.folder))
        if not path.is_file() or hash_file(path) == hash_file(theirs):
            return
        if _canonical(path) != _canonical(theirs):
            raise ModelFolderError(
                path,
                f"is not the tokenizer of its base {base.key}: the two would not read the same "
                "ids. Name the base that it was trained on; if that is it, remove this file",
            )

    def _notes(self, base: ModelVersion) -> Iterator[str]:
        named = str(self.settings.get("base_model_name_or_path") or "")
        origin = str(base.manifest.training.get("imported_from", ""))
        if named and origin and _last_part(named) != _last_part(origin):
            yield (
                f"{ADAPTER_CONFIG} names the base {named!r}, and {base.key} was imported from "
                f"{origin!r}: be sure that the weights are the same"
            )

    def _turned(self, axes: tuple[int, ...], name: str) -> tuple[int, ...]:
        """The axes of a weight that is stored with inputs first, as GPT-2's is."""
        is_linear = ".lora_A." in name or ".lora_B." in name
        if is_linear and self.settings.get("fan_in_fan_out"):
            return tuple(1 - axis for axis in axes)
        return axes

    def _check_rank(self) -> None:
        rank = self.settings.get("r")
        if self.settings.get("rank_pattern") or rank is None:
            return
        for name, shape in sorted(self.shapes.items()):
            if name.endswith("lora_A.weight") and shape[0] != rank:
                raise ModelFolderError(
                    self.folder / ADAPTER,
                    f"tensor {name} is of rank {shape[0]}, and {ADAPTER_CONFIG} says r {rank}",
                )

    def _unlike(self, name: str, layer: str, theirs: tuple[int, ...]) -> str:
        return f"tensor {name} {list(self.shapes[name])} does not go with {layer} {list(theirs)}"

    def _misfit(self, base: ModelVersion, what: str) -> ModelFolderError:
        named = self.settings.get("base_model_name_or_path")
        return ModelFolderError(
            self.folder / ADAPTER,
            f"does not fit {base.key}: {what}. An adapter is run on the weights that it was "
            f"trained on{f', by its own word those of {named!r}' if named else ''}; name them with "
            "--reference. A base whose vocabulary was resized has to be published so",
        )


def _part_of(name: str, shape: tuple[int, ...]) -> tuple[str, list[int], tuple[int, ...]]:
    """Of a tensor: the base's tensor that it adds to, and those sizes that are of its axes."""
    plain = name.removeprefix(_LAYER)
    for part, (axis, of_base) in _AXES.items():
        if plain.endswith("." + part) and len(shape) == 2:
            return plain.removesuffix(part) + "weight", [shape[axis]], (of_base,)
    return plain.replace(".base_layer.", "."), list(shape), tuple(range(len(shape)))


def _kind(name: str) -> str:
    """A tensor's name without the numbers of layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _canonical(path: Path) -> str:
    """What a tokenizer does, however it was written; padding and cutting are the caller's."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no kind of its own
        raise ModelFolderError(path, f"not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer.to_str()


def _last_part(name: str) -> str:
    return re.split(r"[/\\]", name.partition("@")[0].rstrip("/\\"))[-1].lower()
