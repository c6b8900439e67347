"""Which models a job begins with: names of a request, looked up in the model folder.

A name is looked up among what is there and never joined to a path.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from prm.errors import InvalidInput, ModelFolderError, UnknownModel
from prm.families import FAMILIES
from prm.families.implicit import ImplicitRecipe
from prm.manifest import NAME_PATTERN, ModelVersion, PrmManifest
from prm.registry import Registry, published, read_version
from server.schemas.fine_tuning import JobRequest
from server.schemas.methods import ImplicitPrmIn, PrimeIn, RunIn, StepBceIn, run_of

# Of an implicit PRM's recipe: what training keeps, under the same names.
_READ_OUT = ("beta", "step_value", "step_prefix", "end_token")
_TRAINED_FURTHER = ("prime_feedback", "implicit_prm", "step_bce")


@dataclass(frozen=True, kw_only=True)
class JobModels:
    """`base` is the request's model. `policy` writes, or is the reference of a PRM that is `base`.

    `prm` None begins as the policy, `reference` None is the policy before its first step. `kept`
    are the settings that a PRM brings along.
    """

    base: ModelVersion
    policy: ModelVersion
    prm: ModelVersion | None = None
    reference: ModelVersion | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def trains_further(self) -> bool:
        """Whether the job's model is a PRM, which stays what it is and only gets other weights."""
        return self.base is self.prm

    @property
    def separator(self) -> str:
        """What parts the steps of its texts."""
        return self.base.manifest.step_separator


def find_models(request: JobRequest, registry: Registry) -> JobModels:
    """The models of a request. Raises UnknownModel, and InvalidInput for one of the wrong kind."""
    kind, run = request.method.type, run_of(request.method)
    base = find_model(registry, request.model, "model")
    if isinstance(base.manifest, PrmManifest):
        return _of_prm(registry, base, kind, run)
    if kind == "prime_feedback":
        raise InvalidInput(
            f"model: {base.key} is a policy, and prime_feedback trains a PRM further; name one of "
            f"{_names(registry, 'prm')}",
            param="model",
        )
    prm = _optional(registry, run.prm, f"method.{kind}.prm")
    reference = _optional(registry, run.reference_model, f"method.{kind}.reference_model")
    _check_weights(prm, f"method.{kind}.prm")
    if reference is not None and isinstance(reference.manifest, PrmManifest):
        raise InvalidInput(
            f"reference_model: {reference.key} is a PRM; a reference is a policy, one of "
            f"{_names(registry, 'policy')}",
            param=f"method.{kind}.reference_model",
        )
    kept: dict[str, Any] = {}
    if prm is not None and (recipe := _implicit(prm)) is not None:
        if reference is None and recipe.reference is not None:
            reference = find_model(registry, recipe.reference.key, f"method.{kind}.prm")
        if _scales(run) and "beta" not in run.model_fields_set:
            kept = {"beta": recipe.beta}
    return JobModels(base=base, policy=base, prm=prm, reference=reference, kept=kept)


def find_model(registry: Registry, wanted: str, param: str) -> ModelVersion:
    """The version called NAME or NAME@VERSION, served or not. Raises UnknownModel."""
    if (served := registry.get(wanted)) is not None:
        return served
    name, _, version = wanted.partition("@")
    if re.fullmatch(NAME_PATTERN, name) and name in _folders(registry):
        there = published(registry.root, name)
        if version in there:
            try:
                return read_version(registry.root / name / version)
            except ModelFolderError as error:
                raise UnknownModel(
                    f"{wanted} cannot be used: {error.reason}", param=param
                ) from error
        what = (
            f"{name} has no version {version[:64]!r}"
            if version
            else f"no version of {name} is live"
        )
        known = ", ".join(f"{name}@{each}" for each in there) or "none"
    else:
        what, known = f"no model named {wanted[:100]!r}", _names(registry, "policy", "prm")
    raise UnknownModel(f"{what}; there is {known}", param=param)


def kind_of(registry: Registry, name: str) -> str | None:
    """What the versions of this name are: "policy", "prm"; None where there are none."""
    if (live := registry.get(name)) is not None:
        return live.manifest.kind
    for version in published(registry.root, name) if name in _folders(registry) else []:
        try:
            return read_version(registry.root / name / version).manifest.kind
        except ModelFolderError:
            continue
    return None


def _of_prm(registry: Registry, base: ModelVersion, kind: str, run: RunIn) -> JobModels:
    """The job of a PRM that is trained further."""
    if kind not in _TRAINED_FURTHER:
        raise InvalidInput(
            f"model: {base.key} is a PRM, and {kind} trains a policy; name one of "
            f"{_names(registry, 'policy')}, and give the PRM as method.{kind}.prm where that "
            "begins with one",
            param="model",
        )
    for name in ("prm", "reference_model"):
        if getattr(run, name) is not None:
            raise InvalidInput(
                f"{name}: {base.key} is trained further, and its reference stays; leave it out",
                param=f"method.{kind}.{name}",
            )
    _check_weights(base, "model")
    recipe = _implicit(base)
    if recipe is None:
        assert isinstance(base.manifest, PrmManifest)
        raise InvalidInput(
            f"model: {base.key} is of the family {base.manifest.family}, and only an implicit PRM "
            "is trained further by itself; a PRM with a head begins a step_bce job as "
            "method.step_bce.prm, with the policy that it was made from as model",
            param="model",
        )
    if recipe.reference is None or recipe.reference_compat:
        what = "no reference" if recipe.reference is None else "boundaries of its authors' own"
        raise InvalidInput(
            f"model: {base.key} is read with {what}, by which nothing is trained here; train "
            "another one, from a policy",
            param="model",
        )
    policy = find_model(registry, recipe.reference.key, "model")
    return JobModels(base=base, policy=policy, prm=base, kept=_kept(base, recipe, kind, run))


def _kept(base: ModelVersion, recipe: ImplicitRecipe, kind: str, run: RunIn) -> dict[str, Any]:
    """What the recipe says of how the PRM is read. Raises InvalidInput where a request differs."""
    kept = {name: getattr(recipe, name) for name in _READ_OUT}
    if isinstance(run, StepBceIn):
        as_trained = {"step_value": "accumulative", "step_prefix": None, "end_token": False}
        for name, value in as_trained.items():
            if kept.pop(name) != value:
                raise InvalidInput(
                    f"model: {base.key} is not read as step_bce trains an implicit PRM "
                    f"({name} {value!r}); take implicit_prm or prime_feedback",
                    param="model",
                )
        kept["read_out"] = "log_ratio"
    for name, value in kept.items():
        if name in run.model_fields_set and getattr(run, name) != value:
            raise InvalidInput(
                f"{name} {getattr(run, name)!r}: {base.key} is trained further, and its own, "
                f"{value!r}, stays; leave it out",
                param=f"method.{kind}.{name}",
            )
    return kept


def _scales(run: RunIn) -> bool:
    """Whether β means anything to this method."""
    is_log_ratio = isinstance(run, StepBceIn) and run.read_out == "log_ratio"
    return is_log_ratio or isinstance(run, PrimeIn | ImplicitPrmIn)


def _implicit(version: ModelVersion) -> ImplicitRecipe | None:
    if not isinstance(version.manifest, PrmManifest) or version.manifest.family != "implicit":
        return None
    recipe = FAMILIES["implicit"].recipe_of(version)
    assert isinstance(recipe, ImplicitRecipe)
    return recipe


def _check_weights(version: ModelVersion | None, param: str) -> None:
    """Raises InvalidInput for a PRM that is an adapter on other weights."""
    recipe = None if version is None else _implicit(version)
    if recipe is not None and recipe.adapter:
        assert version is not None
        raise InvalidInput(
            f"{param}: {version.key} is an adapter on other weights, and a job begins with whole "
            "ones; publish it merged (a run leaves both)",
            param=param,
        )


def _optional(registry: Registry, wanted: str | None, param: str) -> ModelVersion | None:
    return None if wanted is None else find_model(registry, wanted, param)


def _folders(registry: Registry) -> set[str]:
    return {folder.name for folder in registry.root.iterdir() if folder.is_dir()}


def _names(registry: Registry, *kinds: str) -> str:
    """The names of these kinds that answer now."""
    live = registry.live()
    return ", ".join(sorted(v.manifest.name for v in live if v.manifest.kind in kinds)) or "none"
