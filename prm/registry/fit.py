"""Whether a version's files, its manifest and the models it is read with fit each other."""

from prm.errors import ModelFolderError
from prm.families import FAMILIES
from prm.families.base import Recipe
from prm.manifest import ModelRef, ModelVersion, PolicyManifest
from prm.registry.names import MANIFEST
from prm.weights import ADAPTER, ADAPTER_CONFIG

# What an adapter's config.json may say otherwise than its base's.
FREE_SETTINGS = frozenset(
    {
        "_name_or_path",
        "dtype",
        "max_position_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def references_of(version: ModelVersion) -> tuple[ModelRef, ...]:
    """The versions that this one is read together with, as its recipe pins them."""
    if isinstance(version.manifest, PolicyManifest):
        return ()
    recipe: Recipe = FAMILIES[version.manifest.family].recipe_of(version)
    return recipe.references


def adapter_base(version: ModelVersion) -> ModelRef | None:
    """The version whose weights this one's adapter is run on; None for weights of its own."""
    if isinstance(version.manifest, PolicyManifest):
        return None
    recipe: Recipe = FAMILIES[version.manifest.family].recipe_of(version)
    return recipe.adapter_base


def check_fit(version: ModelVersion) -> None:
    """Raises ModelFolderError when the configuration is not of the kind that the manifest says."""
    path = version.folder / "config.json"
    architectures = version.config.get("architectures")
    is_listed = isinstance(architectures, list) and architectures
    architecture = str(architectures[0]) if is_listed and architectures else "none"
    if not isinstance(version.config.get("max_position_embeddings"), int):
        raise ModelFolderError(path, "max_position_embeddings is missing")
    if isinstance(version.manifest, PolicyManifest):
        if not architecture.endswith("ForCausalLM"):
            raise ModelFolderError(
                path, f"architecture {architecture} is not a causal language model"
            )
        return
    family = FAMILIES.get(version.manifest.family)
    if family is None:
        known = ", ".join(FAMILIES)
        raise ModelFolderError(
            version.folder / MANIFEST, f"family {version.manifest.family!r} is not one of {known}"
        )
    if not family.reads_architecture(architecture):
        raise ModelFolderError(
            path,
            f"architecture {architecture} does not fit family {family.name!r} of {MANIFEST}, "
            f"which reads …{' or …'.join(family.architectures)}",
        )
    family.recipe_of(version)


def check_adapter(version: ModelVersion) -> None:
    """Raises ModelFolderError where recipe and files differ on whether this is an adapter."""
    files = version.manifest.files
    path = version.folder / ADAPTER_CONFIG
    if adapter_base(version) is None:
        if ADAPTER_CONFIG in files or ADAPTER in files:
            raise ModelFolderError(
                path,
                "an adapter is served by family 'implicit' with adapter: true in its recipe and "
                "its base as reference; merge it into its base for any other use",
            )
        return
    if ADAPTER_CONFIG not in files:
        raise ModelFolderError(path, "missing; the recipe says that the weights are an adapter")
    for name in sorted(files):
        if name.endswith(".safetensors") and name != ADAPTER:
            raise ModelFolderError(
                version.folder / name, "weights beside an adapter's; they would not be read"
            )


def check_reference(version: ModelVersion, reference: ModelVersion) -> None:
    """Both models of a log-ratio must read the same ids, and as many of them."""
    ours, theirs = (v.manifest.files["tokenizer.json"].sha256 for v in (version, reference))
    if ours != theirs:
        raise ModelFolderError(
            version.folder / "tokenizer.json",
            f"differs from that of its reference {reference.key}: their log-probs do not compare",
        )
    if adapter_base(version) is not None:
        _check_base(version, reference)
    if reference.context_limit < version.context_limit:
        raise ModelFolderError(
            version.folder / "config.json",
            f"reads {version.context_limit} tokens, its reference {reference.key} only "
            f"{reference.context_limit}; publish it with the smaller limit",
        )


def _check_base(version: ModelVersion, base: ModelVersion) -> None:
    """An adapter runs in its base's configuration, which its own folder must not contradict."""
    if not isinstance(base.manifest, PolicyManifest):
        raise ModelFolderError(
            version.folder / MANIFEST,
            f"recipe.reference {base.key} is no policy; an adapter is run on one",
        )
    for key in sorted((version.config.keys() | base.config.keys()) - FREE_SETTINGS):
        ours, theirs = version.config.get(key), base.config.get(key)
        if ours != theirs:
            raise ModelFolderError(
                version.folder / "config.json",
                f"{key} is {ours!r}, and {theirs!r} in the adapter's base {base.key}; an adapter "
                "runs in its base's configuration",
            )
