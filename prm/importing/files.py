"""Which files of a downloaded checkpoint make a version, and what to do where one is missing.

Data only: what could run code when it is loaded stays where it is, and so does everything else that
no loader here reads.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm.errors import ModelFolderError
from prm.files import read_json
from prm.registry import PICKLE_SUFFIXES
from prm.weights import ADAPTER, ADAPTER_CONFIG, INDEX, WHOLE, shard_names

NEEDED = ("config.json", "tokenizer_config.json", "tokenizer.json")
WANTED = (
    *NEEDED,
    "generation_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
# What a training run leaves beside its weights.
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")

# `weights_only` reads tensors out of a pickle and runs nothing of it.
_CONVERT_WEIGHTS = (
    "import sys, torch; from safetensors.torch import save_file; f, to, *names = sys.argv[1:]; "
    "save_file({k: v.clone().contiguous() for n in names for k, v in torch.load(f + '/' + n, "
    "map_location='cpu', weights_only=True).items()}, f + '/' + to, metadata={'format': 'pt'})"
)
_CONVERT_TOKENIZER = (
    "import sys; from transformers import AutoTokenizer; f = sys.argv[1]; "
    "AutoTokenizer.from_pretrained(f).backend_tokenizer.save(f + '/tokenizer.json')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """The files of a version by name, what else lies there, and what is worth saying about it."""

    paths: Mapping[str, Path]
    left_behind: Sequence[str]
    notes: Sequence[str]

    @property
    def num_bytes(self) -> int:
        """Size of the version."""
        return sum(path.stat().st_size for path in self.paths.values())


def choose_files(folder: Path) -> CheckpointFiles:
    """A checkpoint's files. Raises ModelFolderError with the remedy where something is missing."""
    if not folder.is_dir():
        raise ModelFolderError(
            folder,
            "no such folder; download the checkpoint first (`hf download OWNER/NAME --local-dir "
            "FOLDER`)",
        )
    weights = _weights(folder)
    _check_tokenizer(folder)
    names = [name for name in WANTED if (folder / name).is_file()] + weights
    if missing := [name for name in NEEDED if name not in names]:
        raise ModelFolderError(folder / missing[0], "missing; no version is read without it")
    config = read_json(folder / "config.json")
    if not config.get("architectures"):
        raise ModelFolderError(
            folder / "config.json",
            "names no architectures, so nothing says what the weights are; state the class that "
            'they were saved from, as in "architectures": ["Qwen2ForCausalLM"]',
        )
    notes = []
    if "auto_map" in config:
        notes.append("config.json names code of its own (auto_map): it is copied and never run")
    return CheckpointFiles(
        paths={name: (folder / name).resolve() for name in names},
        left_behind=left_behind(folder, names),
        notes=notes,
    )


def left_behind(folder: Path, taken: Sequence[str]) -> list[str]:
    """What lies in the folder beside the files that are taken."""
    return [
        path.name + ("/" if path.is_dir() else "")
        for path in sorted(folder.iterdir())
        if path.name not in taken
    ]


def refuse_pickles(folder: Path, target: str) -> None:
    """Raises ModelFolderError, with the command that writes `target`, when weights are pickles."""
    pickles = [
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in PICKLE_SUFFIXES and not path.name.startswith(_NO_WEIGHTS)
    ]
    if pickles:
        raise ModelFolderError(
            folder,
            f"its weights are pickles ({', '.join(pickles)}), which can run code when loaded; "
            "convert them to safetensors, then import again:\n  "
            + _command(_CONVERT_WEIGHTS, folder, target, *pickles),
        )


def _weights(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        names = sorted(set(shard_names(folder / INDEX).values()))
        for name in names:
            if not (folder / name).is_file():
                raise ModelFolderError(
                    folder / name, f"missing, and {INDEX} lists it; download it again"
                )
        return [INDEX, *names]
    if (folder / WHOLE).is_file():
        return [WHOLE]
    raise _no_weights(folder)


def _no_weights(folder: Path) -> ModelFolderError:
    if (folder / ADAPTER).is_file():
        return ModelFolderError(
            folder / ADAPTER_CONFIG,
            f"missing, and {ADAPTER} is there: what scales an adapter's weights is in it",
        )
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        return ModelFolderError(
            folder,
            f"holds {', '.join(others)}, and neither {WHOLE} nor {INDEX}; name one file {WHOLE}, "
            "or download the index of several",
        )
    refuse_pickles(folder, WHOLE)
    return ModelFolderError(folder, f"holds no weights: neither {WHOLE} nor {INDEX}")


def _check_tokenizer(folder: Path) -> None:
    if (folder / "tokenizer.json").is_file():
        return
    sources = [n for n in ("tokenizer.model", "vocab.json", "merges.txt") if (folder / n).is_file()]
    if not sources:
        raise ModelFolderError(
            folder / "tokenizer.json", "missing; take it from the model that this one was tuned of"
        )
    raise ModelFolderError(
        folder / "tokenizer.json",
        f"missing; make it from {' and '.join(sources)}, then import again:\n  "
        + _command(_CONVERT_TOKENIZER, folder),
    )


def _command(code: str, folder: Path, *names: str) -> str:
    return shlex.join(["python", "-c", code, str(folder), *names])
