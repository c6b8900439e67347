"""What could have been written where a caller wrote something unknown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from fastapi import Request
from pydantic import BaseModel


def request_model(request: Request) -> Any:
    """The type of the body of the route that a request went to, None where it has none."""
    field = getattr(request.scope.get("route"), "body_field", None)
    return field.field_info.annotation if field is not None else None


def valid_names(error: Mapping[str, Any], model: Any) -> str | None:
    """For an error about an unknown field or type: a sentence that names the known ones.

    `error` is pydantic's, with the location inside a body of type `model` after its first part.
    """
    location = error["loc"][1:]
    match error["type"]:
        case "extra_forbidden":
            fields = {name for each in _models_at(location[:-1], model) for name in _fields(each)}
            known = f"; there is {', '.join(sorted(fields))}" if fields else ""
            return f"no such field{known}"
        case "union_tag_invalid":
            return f"no such {_key(error)}; there is {_unquoted(error['ctx']['expected_tags'])}"
        case "union_tag_not_found":
            tags = {tag for each in _models_at(location, model) for tag in _tags(each)}
            return f"name a {_key(error)}: one of {', '.join(sorted(tags))}"
    return None


def _models_at(location: Sequence[str | int], annotation: Any) -> list[type[BaseModel]]:
    """The models that may stand there. A union puts the type's name into the location."""
    models = list(_models(annotation))
    is_chosen = False
    for part in location:
        if isinstance(part, int):
            continue
        tagged = [model for model in models if part in _tags(model)]
        # What follows a type's name is a field, even one that is called as the type.
        is_chosen = bool(tagged) and not is_chosen
        if is_chosen:
            models = tagged
        else:
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [model for field in fields for model in _models(field.annotation)]
    return models


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """All models in a type, however deep in unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _fields(model: type[BaseModel]) -> Iterator[str]:
    return (field.alias or name for name, field in model.model_fields.items())


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """The names that tell this model apart from others of its union."""
    field = model.model_fields.get("type")
    return get_args(field.annotation) if field is not None else ()


def _key(error: Mapping[str, Any]) -> str:
    return _unquoted(error["ctx"]["discriminator"])


def _unquoted(names: str) -> str:
    return names.replace("'", "")
