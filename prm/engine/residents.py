"""The models of one device: loaded, proven by their golden scores, read and written with.

`load` changes nothing that is there, so it may run in a thread beside the forwards; `adopt` puts
what it loaded in place, between two of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from prm.chat import ChatTokenizer
from prm.engine.golden import check_golden
from prm.engine.heads import load_model
from prm.engine.lora import AdaptedLM, BaseLM
from prm.engine.memory import free_bytes, weights_bytes, with_margin
from prm.engine.model import CausalLM, EngineModel
from prm.engine.reader import Reader
from prm.engine.sampler import Sampler
from prm.errors import ModelFolderError, NoRoom
from prm.families import FAMILIES
from prm.manifest import ModelRef, ModelVersion, PolicyManifest, PrmManifest
from prm.registry import adapter_base, read_version, references_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where models lie, and what each may take."""

    device: str = "cpu"
    dtype: torch.dtype | None = None
    max_batch: int = 64
    cache_bytes: int = 256 << 20
    token_budget: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Versions that are in memory and checked, and not yet in place."""

    models: dict[str, EngineModel]
    readers: dict[str, Reader] = field(default_factory=dict)
    samplers: dict[str, Sampler] = field(default_factory=dict)
    references: frozenset[str] = frozenset()


class Residents:
    """What an engine holds. `readers` and `samplers` are by the version's key."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._models: dict[str, EngineModel] = {}
        self._references: set[str] = set()
        self.readers: dict[str, Reader] = {}
        self.samplers: dict[str, Sampler] = {}

    @property
    def some_model(self) -> EngineModel | None:
        """Any of them; None where vLLM servers do all the work."""
        return next(iter(self._models.values()), None)

    def must_wait(self, versions: Iterable[ModelVersion]) -> bool:
        """Whether these change a model that is in use, so that no forward may run meanwhile."""
        bases = (adapter_base(version) for version in versions)
        return any(
            base is not None and shared_base(self._models, base.key) is not None for base in bases
        )

    def check_room(self, versions: Sequence[ModelVersion]) -> None:
        """Raises NoRoom where these do not fit beside what is there, ModelFolderError."""
        new = [version for version in versions if version.key not in self._models]
        # A base that adapters cannot be put on is loaded once more: see `_attach`.
        bases = {
            base.key: read_version(version.folder.parents[1] / base.name / base.version)
            for version in new
            if (base := adapter_base(version)) and shared_base(self._models, base.key) is None
        }
        weights = {version.key: version for version in new} | bases
        device = self._device.device
        needed = with_margin(weights_bytes(weights.values(), device, self._device.dtype))
        if weights and needed > (free := free_bytes(device)):
            raise NoRoom(needed, free)

    def load(self, versions: Sequence[ModelVersion]) -> Loaded:
        """Load these and check their golden scores. Raises ModelFolderError.

        What they are read together with must be among them or be there. A version that is there
        already is left as it is.
        """
        new = [version for version in versions if version.key not in self._models]
        device = self._device
        models = load_all(new, device.device, device.dtype, there=self._models)
        together = {**self._models, **models}
        references = {pinned.key for version in new for pinned in references_of(version)}
        loaded = Loaded(models=models, references=frozenset(references))
        for version in new:
            tokenizer = ChatTokenizer(version.folder)
            check_golden(version, tokenizer, together)
            model = models[version.key]
            loaded.readers[version.key] = Reader(
                model, cache_bytes=device.cache_bytes, token_budget=device.token_budget
            )
            if _writes(version):
                assert isinstance(model, CausalLM)
                loaded.samplers[version.key] = Sampler(model, tokenizer, max_batch=device.max_batch)
        return loaded

    def adopt(self, loaded: Loaded) -> None:
        """Put them in place."""
        self._models |= loaded.models
        self.readers |= loaded.readers
        self.samplers |= loaded.samplers
        self._references |= loaded.references
        for key, sampler in self.samplers.items():
            # Where a policy is a PRM's reference, its sampling is the reference's pass.
            sampler.keeps_logprobs = key in self._references

    def drop(self, keys: Iterable[str]) -> None:
        """Forget these, and what was cached of them. Nobody may be waiting for them."""
        for key in keys:
            model = self._models.pop(key, None)
            self.readers.pop(key, None)
            self.samplers.pop(key, None)
            self._references.discard(key)
            if isinstance(model, AdaptedLM):
                model.detach()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_all(
    versions: Sequence[ModelVersion],
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    there: Mapping[str, EngineModel] | None = None,
) -> dict[str, EngineModel]:
    """The models of these versions by key; adapters share the weights of their bases.

    A base may be among `there`, what is loaded already. Raises ModelFolderError whatever keeps one
    from being loaded and fed.
    """
    bases = {version.key: adapter_base(version) for version in versions}
    shared = {base.key for base in bases.values() if base is not None}
    models: dict[str, EngineModel] = {}
    for version in sorted(versions, key=lambda version: bases[version.key] is not None):
        load: Callable[[], EngineModel]
        if (base := bases[version.key]) is not None:
            around = {**(there or {}), **models}
            load = partial(_attach, around, base, version, device, dtype)
        elif version.key in shared:
            load = partial(BaseLM.load, version.folder, device=device, dtype=dtype)
        else:
            load = partial(load_model, version, device=device, dtype=dtype)
        models[version.key] = _load_or_refuse(version, load, device)
    return models


def shared_base(models: Mapping[str, EngineModel], key: str) -> BaseLM | None:
    """The weights of this version that adapters can be put on, if any of these models has them."""
    if isinstance(model := models.get(key), BaseLM):
        return model
    adapted = (model for model in models.values() if isinstance(model, AdaptedLM))
    return next((model.base for model in adapted if model.base_key == key), None)


def _attach(
    models: Mapping[str, EngineModel],
    base: ModelRef,
    version: ModelVersion,
    device: str,
    dtype: torch.dtype | None,
) -> AdaptedLM:
    """The adapter on its base's weights.

    A base that was loaded before anyone knew of adapters cannot take them: its layers are fused. It
    is loaded once more then, for this adapter and those that come after it.
    """
    found = shared_base(models, base.key)
    if found is None:
        folder = version.folder.parents[1] / base.name / base.version
        found = BaseLM.load(folder, device=device, dtype=dtype)
    return found.attach(version.folder, base_key=base.key)


def _load_or_refuse(
    version: ModelVersion, load: Callable[[], EngineModel], device: str
) -> EngineModel:
    try:
        model = load()
    except ModelFolderError:
        raise
    # No such device, no memory for the weights, weights of another shape, an architecture that
    # transformers does not know: the next try would end the same way, so it is said.
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelFolderError(
            version.folder, f"cannot be loaded on {device}: {type(error).__name__}: {first_line}"
        ) from error
    if (largest := ChatTokenizer(version.folder).largest_id) >= model.num_ids:
        raise ModelFolderError(
            version.folder / "tokenizer.json",
            f"has ids up to {largest}, and the model only {model.num_ids} rows for them",
        )
    return model


def _writes(version: ModelVersion) -> bool:
    """Policies write, and PRMs that verify in words."""
    manifest: PolicyManifest | PrmManifest = version.manifest
    return isinstance(manifest, PolicyManifest) or FAMILIES[manifest.family].writes
