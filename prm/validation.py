"""What a validation error says first: one thing to mend at a time."""

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """`field.inner: message`; the message alone where it is about the whole."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else str(first["msg"])
