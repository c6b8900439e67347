"""Where each version is run: in the engine process, or on vLLM servers; and what scores with it."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from prm.backends.golden_gate import GoldenGate, VerdictGate
from prm.backends.vllm import VllmBackend, VllmModel
from prm.backends.writing import EngineVerdicts, VllmVerdicts
from prm.engine.client import EngineClient
from prm.errors import InvalidInput
from prm.families import FAMILIES
from prm.generative_scorer import GenerativeScorer
from prm.manifest import ModelVersion, PolicyManifest, PrmManifest
from prm.registry import Registry
from prm.scorer import Scorer, StepScorer
from search.generators.local import LocalGenerator
from server.serving import Snapshot


class Scoring:
    """Versions by where they are scored. `aclose` last.

    Raises InvalidInput for a URL of no model, of a model that no PRM reads, or without those of the
    other models that the same PRM reads.
    """

    def __init__(
        self, urls: Mapping[str, str], api_key: SecretStr | None, registry: Registry
    ) -> None:
        key = api_key.get_secret_value() if api_key else None
        models = {
            version.key: VllmModel(url=url, name=version.manifest.name, api_key=key)
            for version, url in _named(urls, registry)
        }
        self.remote_names = frozenset(
            version.manifest.name for version, _ in _named(urls, registry)
        )
        self._remote = _fully_mapped(models, registry)
        self._backend = VllmBackend(models)
        self._writers = {
            version.key: VllmVerdicts(self._backend, models[version.key])
            for version in _prms(registry)
            if version.key in self._remote and _is_generative(version)
        }

    def engine_folders(self, registry: Registry) -> list[Path]:
        """Folders of what the engine must hold: live policies, PRMs scored there, references."""
        prms = [v for v in _prms(registry) if v.key not in self._remote]
        policies = [v for v in registry.live() if isinstance(v.manifest, PolicyManifest)]
        references = [r for version in prms for r in registry.references_of(version)]
        return list(dict.fromkeys(v.folder for v in (*policies, *prms, *references)))

    def snapshot(
        self, registry: Registry, engine: EngineClient, before: Snapshot | None = None
    ) -> Snapshot:
        """Scorers and policies of these versions; those that were there before stay what they are.

        Loads tokenizers, for which it may take a tenth of a second.
        """
        scorers = dict(before.scorers) if before else {}
        policies = dict(before.policies) if before else {}
        live = {v.manifest.name: v for v in registry.live() if v.manifest.kind == "policy"}
        return Snapshot(
            registry=registry,
            scorers={
                version.key: scorers.get(version.key) or self._scorer(version, engine)
                for version in _prms(registry)
            },
            policies={
                name: old
                if (old := policies.get(name)) and old.version == version.manifest.version
                else LocalGenerator(version, engine)
                for name, version in live.items()
            },
        )

    async def aclose(self) -> None:
        """Close the connections to the vLLM servers."""
        for writer in self._writers.values():
            await writer.aclose()
        await self._backend.aclose()

    def _scorer(self, version: ModelVersion, engine: EngineClient) -> StepScorer:
        is_remote = version.key in self._remote
        if not _is_generative(version):
            return Scorer(version, GoldenGate(version, self._backend) if is_remote else engine)
        if is_remote:
            return GenerativeScorer(version, VerdictGate(version, self._writers[version.key]))
        return GenerativeScorer(version, EngineVerdicts(engine, version.key))


def _named(urls: Mapping[str, str], registry: Registry) -> list[tuple[ModelVersion, str]]:
    named = []
    for name, url in urls.items():
        version = registry.get(name)
        if version is None:
            known = ", ".join(sorted(v.key for v in registry))
            raise InvalidInput(
                f"scoring_urls: no model is named {name!r}; there is {known}", param="scoring_urls"
            )
        named.append((version, url))
    return named


def _fully_mapped(models: Mapping[str, VllmModel], registry: Registry) -> frozenset[str]:
    """Keys of the PRM versions all of whose models have a URL."""
    remote: set[str] = set()
    unused = set(models)
    for version in _prms(registry):
        reads = {version.key, *(r.key for r in registry.references_of(version))}
        if version.key in models:
            if missing := reads - set(models):
                raise InvalidInput(
                    f"scoring_urls: {version.key} is read together with {missing.pop()}; give that "
                    "one's URL too, or leave both to the engine",
                    param="scoring_urls",
                )
            remote.add(version.key)
            unused -= reads
    if unused:
        raise InvalidInput(
            f"scoring_urls: no PRM with a URL reads {unused.pop()}; give the PRM's URL too",
            param="scoring_urls",
        )
    return frozenset(remote)


def _is_generative(version: ModelVersion) -> bool:
    return version.manifest.kind == "prm" and FAMILIES[version.manifest.family].writes


def _prms(registry: Registry) -> list[ModelVersion]:
    return [version for version in registry if isinstance(version.manifest, PrmManifest)]
