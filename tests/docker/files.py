"""What lies in docker/, read once: the compose files, the Dockerfiles, the dashboard, the rules."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with compose's own tags, whose values are taken as they are."""


for _tag in ("!override", "!reset"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_sequence(node, deep=True))


def load_yaml(path: Path) -> Any:
    """A file's content. Raises yaml.YAMLError."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file as it is written, anchors resolved."""
    content: dict[str, Any] = load_yaml(DOCKER / name)
    return content


def with_defaults(text: str, **given: str) -> str:
    """`${NAME:-default}` as compose fills it in where nobody has set NAME."""
    return re.sub(
        r"\$\{(\w+):-([^}]*)\}", lambda match: given.get(match[1], match[2]), text
    ).replace("$$", "$")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a Dockerfile, continued ones joined, and the stage that it is in."""

    name: str
    arguments: str
    stage: str

    @property
    def words(self) -> list[str]:
        """The arguments: of a JSON list its items, else what spaces divide."""
        if self.arguments.startswith("["):
            return [str(word) for word in json.loads(self.arguments)]
        return self.arguments.split()


def dockerfile(name: str) -> list[Instruction]:
    """All instructions in order."""
    text = (DOCKER / name).read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    instructions, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        word, _, arguments = line.partition(" ")
        if word == "FROM":
            stage = arguments.rpartition(" AS ")[2]
        instructions.append(Instruction(word, arguments.strip(), stage))
    return instructions


def last(name: str, instruction: str, stage: str) -> Instruction:
    """The one that counts: an image has one CMD, ENTRYPOINT, USER and HEALTHCHECK."""
    return [i for i in dockerfile(name) if (i.name, i.stage) == (instruction, stage)][-1]


def environment(name: str, stage: str) -> dict[str, str]:
    """What ENV sets in a stage, without what it inherits."""
    lines = [i.arguments for i in dockerfile(name) if (i.name, i.stage) == ("ENV", stage)]
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, rows too."""
    board = json.loads((DOCKER / "grafana" / "dashboards" / "rung.json").read_text("utf-8"))
    found: list[dict[str, Any]] = board["panels"]
    return found


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    groups = load_yaml(DOCKER / "prometheus" / "rules.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]
