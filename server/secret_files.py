"""Secrets that lie in files: `RUNG_API_KEYS_FILE=/run/secrets/api_keys` and its like.

What a container engine mounts, and what stands in no environment that a child process or a crash
report copies. A secret that is told twice, by its variable and by a file, is refused.
"""

import os
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from prm.errors import RungError

# The secrets of `Settings`; `keys_file` is a file already.
FIELDS = ("api_keys", "redis_url", "policy_api_key", "scoring_api_key")
# Other names of a secret's own variable.
_ALIASES = {"redis_url": ("REDIS_URL",)}


class SecretFileError(RungError):
    """A secret's file cannot be used: which variable, which file, why."""

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(f"{variable} {reason}")


class SecretFiles(PydanticBaseSettingsSource):
    """The contents of the files that `RUNG_<FIELD>_FILE` name, without the space around them.

    Calling it raises SecretFileError.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """See `pydantic_settings`."""
        variable = f"RUNG_{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        if field_name not in FIELDS or not path:
            return None, field_name, False
        for other in (f"RUNG_{field_name.upper()}", *_ALIASES.get(field_name, ())):
            if os.environ.get(other):
                raise SecretFileError(variable, f"and {other} are both set; unset one")
        return _read(variable, Path(path)), field_name, False

    def __call__(self) -> dict[str, Any]:
        """See `pydantic_settings`."""
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: text for name, text in found.items() if text is not None}


def _read(variable: str, path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SecretFileError(variable, f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SecretFileError(variable, f"{path}: not text in UTF-8") from error
    if not text:
        raise SecretFileError(variable, f"{path}: is empty; write the secret to it")
    return text
