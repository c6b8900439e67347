"""What `/metrics` says of answers, and that the documentation names every metric."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from prm.registry import Registry
from search.answers import MathAnswers
from server.answer_metrics import AnswersCollector
from server.sandbox import Sandbox
from server.services import Services
from server.settings import Settings
from training.grading.code import CodeGrader

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


@pytest.mark.anyio
async def test_what_is_undecided_and_the_process_lost_with_it_are_counted() -> None:
    async with MathAnswers(workers=1, deadline_s=0.3, group_s=5.0) as math:
        registry = CollectorRegistry()
        registry.register(AnswersCollector(math, Sandbox(CodeGrader())))

        def read() -> list[float | None]:
            names = ("rung_answers_undecided_total", "rung_answer_processes_replaced_total")
            return [registry.get_sample_value(name) for name in names]

        assert await math.is_equal("1/2", "2/4") == "equal"
        assert read() == [0, 0]
        assert await math.is_equal("3", "7**7**7**7") == "undecided"
        # The next comparison waits for the next process.
        assert await math.is_equal("1/3", "2/6") == "equal"
        assert read() == [1, 1]


def test_the_documentation_names_every_metric(tiny_models: Path) -> None:
    settings = Settings(models=tiny_models, policy_url="http://127.0.0.1:1")
    services = Services(settings, Registry.open(tiny_models))
    table = OPERATIONS.read_text(encoding="utf-8")
    families = {family.name: family.type for family in services.telemetry.registry.collect()}
    assert {"rung_tokens", "rung_code_runs", "rung_policy_server_breaker"} <= set(families)
    missing = {
        name
        for name, kind in families.items()
        if f"`{name}{'_total' if kind == 'counter' else ''}`" not in table
    }
    assert not missing
