"""Which family a checkpoint is of, told from its files; or why it is of none that was named.

Every family is asked for a proposal. One that is certain is taken; what several could read (a plain
causal LM carries no mark of what it was trained for) has to be named, and a name that the files
contradict is refused with the recipe that they do fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from pydantic import ValidationError

from prm.aggregation import PlainAggregation
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families import FAMILIES
from prm.families.base import FamilySpec, HeadLayout, Proposal, Recipe, RecipeMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """How a checkpoint is read. `evidence` says in words what of its files fits."""

    family: str
    recipe: Recipe
    step_separator: str
    aggregation: PlainAggregation
    threshold: float
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the importer says: family, recipe and settings of the recipe, each or none."""

    family: str | None = None
    recipe: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> str | None:
        """The family that is asked for, by its name or by its recipe's. Raises InvalidInput."""
        if self.family is not None and self.family not in FAMILIES:
            raise InvalidInput(f"family {self.family!r} is not one of {', '.join(FAMILIES)}")
        if self.recipe is None:
            return self.family
        for name in [self.family] if self.family else FAMILIES:
            if self.recipe in recipe_names(FAMILIES[name]):
                return name
        known = [n for spec in FAMILIES.values() for n in recipe_names(spec)]
        if self.family is not None:
            known = list(recipe_names(FAMILIES[self.family]))
        of = f" of family {self.family}" if self.family else ""
        raise InvalidInput(f"recipe {self.recipe!r}{of} is not one of {', '.join(known)}")


def recipe_names(spec: FamilySpec[Any]) -> tuple[str, ...]:
    """The recipes that a family has."""
    names: tuple[str, ...] = get_args(spec.recipe.model_fields["name"].annotation)
    return names


def detect(checkpoint: Checkpoint, asked: Asked) -> Detected:
    """The family and recipe of a checkpoint.

    Raises ModelFolderError when it fits none, another than the named one, or several; InvalidInput
    for settings that the recipe has not.
    """
    named = asked.named
    found = {name: _ask(spec, checkpoint, asked, named) for name, spec in FAMILIES.items()}
    fits = {name: answer for name, answer in found.items() if isinstance(answer, Proposal)}
    reasons = {name: answer for name, answer in found.items() if isinstance(answer, str)}
    if named is None:
        certain = [name for name, proposal in fits.items() if proposal.is_certain]
        if len(certain) != 1:
            raise _undecided(checkpoint, fits, reasons, certain)
        named = certain[0]
    elif named not in fits:
        if isinstance(free := _ask(FAMILIES[named], checkpoint, Asked(), None), Proposal):
            fits = {named: free, **fits}  # another recipe of the same family
        raise _another(checkpoint, f"is not of family {named}: {reasons[named]}", fits)
    elif _layout(named, fits[named]) is None:
        refuse_own_head(checkpoint, fits, f"is not of family {named}, which reads the vocabulary")
    proposal = fits[named]
    return _detected(named, proposal, checkpoint, asked.settings)


def refuse_own_head(
    checkpoint: Checkpoint, fits: Mapping[str, Proposal[Any]] | None, complaint: str
) -> None:
    """Raises ModelFolderError when the checkpoint has the head of a family that keeps its own.

    Its language head, where it has one, is what training left behind: nothing is read off it.
    """
    if fits is None:
        answers = {name: _ask(spec, checkpoint, Asked(), None) for name, spec in FAMILIES.items()}
        fits = {name: answer for name, answer in answers.items() if isinstance(answer, Proposal)}
    owners = {n: p for n, p in fits.items() if p.is_certain and _layout(n, p) is not None}
    if owners:
        raise _another(checkpoint, complaint, owners)


def _ask(
    spec: FamilySpec[Any], checkpoint: Checkpoint, asked: Asked, named: str | None
) -> Proposal[Any] | str:
    """What a family makes of a checkpoint: a proposal, or what differs."""
    if named == spec.name:
        name = {} if asked.recipe is None else {"name": asked.recipe}
        checkpoint = replace(checkpoint, asked={**asked.settings, **name})
    try:
        proposal = spec.propose(checkpoint)
    # A vocabulary that cannot even spell a family's markers is not that family's.
    except (RecipeMismatch, InvalidInput) as mismatch:
        return str(mismatch)
    except ValidationError as error:
        raise _bad_setting(error, spec.recipe) from error
    if not spec.reads_architecture(checkpoint.architecture):
        return f"architecture {checkpoint.architecture} is not …{' or …'.join(spec.architectures)}"
    if named == spec.name and asked.recipe not in (None, proposal.recipe.name):
        return f"these files are read as {proposal.recipe.label}"
    return proposal


def _detected(
    family: str, proposal: Proposal[Any], checkpoint: Checkpoint, settings: Mapping[str, Any]
) -> Detected:
    recipe: Recipe = proposal.recipe
    if settings:
        kind = type(recipe)
        try:
            recipe = kind.model_validate({**recipe.model_dump(), **settings})
        except ValidationError as error:
            raise _bad_setting(error, kind) from error
    separator = proposal.step_separator
    # Where the recipe itself writes what parts the steps, texts are cut at the same.
    if getattr(proposal.recipe, "separator", None) == separator:
        separator = str(getattr(recipe, "separator", separator))
    return Detected(
        family=family,
        recipe=recipe,
        step_separator=separator,
        aggregation=proposal.aggregation,
        threshold=proposal.threshold,
        evidence=_evidence(family, proposal, checkpoint),
    )


def _layout(family: str, proposal: Proposal[Any]) -> HeadLayout | None:
    return FAMILIES[family].head(proposal.recipe)


def _evidence(family: str, proposal: Proposal[Any], checkpoint: Checkpoint) -> str:
    layout = _layout(family, proposal)
    if layout is None:
        return f"{checkpoint.architecture}, read at the vocabulary's logits"
    tensor = f"{layout.layer_names[-1]}.weight"
    return f"`{tensor}` has shape {list(checkpoint.shapes[tensor])}"


def _another(
    checkpoint: Checkpoint, complaint: str, fits: Mapping[str, Proposal[Any]]
) -> ModelFolderError:
    certain = {name: proposal for name, proposal in fits.items() if proposal.is_certain}
    for name, proposal in certain.items():
        evidence = _evidence(name, proposal, checkpoint)
        return ModelFolderError(
            checkpoint.folder,
            f"{complaint}. This is a {proposal.recipe.label} checkpoint: {evidence}; import it "
            f"with --family {name}",
        )
    others = "; ".join(f"--family {name} ({p.recipe.label})" for name, p in fits.items())
    return ModelFolderError(
        checkpoint.folder, complaint + (f". It could be read with {others}" if others else "")
    )


def _undecided(
    checkpoint: Checkpoint,
    fits: Mapping[str, Proposal[Any]],
    reasons: Mapping[str, str],
    certain: list[str],
) -> ModelFolderError:
    """Several families fit, or none."""
    if certain:
        fits = {name: fits[name] for name in certain}
    lines = [f"  --family {name} ({proposal.recipe.label})" for name, proposal in fits.items()]
    if not certain and checkpoint.architecture.endswith("ForCausalLM"):
        lines.append("  --policy (a model that writes steps, and no PRM)")
    differing = [f"  {name}: {reason}" for name, reason in reasons.items()]
    if not fits:
        what = f"is of no known family ({checkpoint.architecture}). What differs, by family:"
        return ModelFolderError(checkpoint.folder, "\n".join([what, *differing]))
    what = (
        f"could be read by several families ({checkpoint.architecture}), and nothing in its files "
        "decides. Name the one that it was trained for:"
    )
    return ModelFolderError(
        checkpoint.folder, "\n".join([what, *lines, "What differs from the others:", *differing])
    )


def _bad_setting(error: ValidationError, kind: type[Recipe]) -> InvalidInput:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "recipe"
    if first["type"] == "extra_forbidden":
        known = ", ".join(name for name in kind.model_fields if name not in ("name", "revision"))
        return InvalidInput(f"this recipe has no setting {place!r}; it has {known}")
    return InvalidInput(f"recipe setting {place}: {first['msg']}")
