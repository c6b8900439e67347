"""Settings of algorithms: closed, and a wrong combination says what to write instead."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from training.settings import Algorithm, AlgorithmSettings, ImplicitPrm, Prime, Prl, Repirl, Rloo

ADAPTER: TypeAdapter[AlgorithmSettings] = TypeAdapter(Algorithm)

WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"type": "ppo"}, "union_tag_invalid|does not match any of the expected tags"),
    ({"type": "rloo", "learning_rate": 1}, "Extra inputs are not permitted"),
    ({"type": "rloo", "clip_low": 1.0}, "less than 1"),
    ({"type": "rloo", "importance_cap": 0.5}, "importance_cap 0.5 .*1 or more, or to 0"),
    (
        {"type": "grpo", "kl_coefficient": 0.1, "kl_estimator": "k1"},
        'kl_estimator k1.*set kl_estimator to "k2" or "k3"',
    ),
    ({"type": "grpo", "epsilon": float("nan")}, "finite number|greater than or equal to 0"),
    ({"type": "implicit_prm", "beta": 0}, "greater than 0"),
    ({"type": "implicit_prm", "pairing": "one"}, 'pairing means nothing to loss "ce"'),
    ({"type": "implicit_prm", "loss": "dpo", "right_weight": 2}, 'set loss to "kto"'),
    ({"type": "step_bce", "continuations": 4}, 'set labels to "soft" or "hard"'),
    ({"type": "step_bce", "beta": 1}, 'set read_out to "log_ratio"'),
    ({"type": "prime", "baseline": "paper"}, 'use "length_normalised"'),
    (
        {"type": "prime", "estimator": "grpo", "baseline": "none"},
        'baseline "none" is a leave-one-out form',
    ),
    ({"type": "prime", "process_as": "value", "process_discount": 0.9}, "process_discount means"),
    ({"type": "prime", "filter": {"low": 0.8, "high": 0.2}}, "exchange them"),
    ({"type": "prl"}, "eta"),
    ({"type": "prl", "eta": 100, "step_tokens": 64}, 'set anchor to "step_start"'),
    ({"type": "prl", "eta": 100, "anchor": "step_end"}, "step_tokens or step_delimiter"),
    (
        {
            "type": "prl", "eta": 1, "anchor": "step_end", "step_tokens": 2, "step_delimiter": "\n",
        },
        "and not both",
    ),
    ({"type": "repirl", "weights": "tempered"}, 'temper belongs to weights "tempered"'),
    ({"type": "repirl", "weight_clip": 2.0}, 'weight_clip belongs to weights "clipped"'),
    ({"type": "repirl", "prm_loss": "mle", "weights": "length"}, 'or prm_loss to "paper"'),
    ({"type": "repirl", "prm_loss": "ce", "normalise": "pooled"}, 'prm_loss to "discriminator"'),
    ({"type": "repirl", "normalise": "response", "weights": "none"}, 'normalise to "prompt"'),
    ({"type": "repirl", "experts_in_partition": False}, 'belongs to prm_loss "mle"'),
)  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_wrong_combination_says_what_to_write(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(fields)


def test_defaults_are_enough_but_for_eta() -> None:
    for name in (
        "sft", "implicit_prm", "step_bce", "rloo", "grpo", "lambda_grpo", "prime", "repirl",
    ):  # fmt: skip
        settings = ADAPTER.validate_python({"type": name})
        assert ADAPTER.validate_json(settings.model_dump_json()) == settings
        assert settings.trains_policy or settings.trains_prm
    assert ADAPTER.validate_python({"type": "prl", "eta": 100}) == Prl(eta=100)


def test_settings_say_what_they_need() -> None:
    assert Rloo().least_group_size == 2
    assert not Rloo().needs_reference
    assert Rloo(kl_coefficient=0.1).needs_reference
    assert Prime(estimator="reinforce").least_group_size == 1
    assert Prime(estimator="reinforce", prm_loss="dpo").least_group_size == 2
    assert not Prime(reference="behaviour").needs_reference
    assert Prl(eta=10).needs_reference
    assert not Repirl(read_out="head").needs_reference
    assert Repirl(read_out="head", weights="reference").needs_reference
    assert ImplicitPrm(loss="nca").least_group_size == 2
    assert ImplicitPrm().least_group_size == 1


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Rloo().clip_low = 0.1  # type: ignore[misc]


def test_reading_a_job_does_not_load_torch() -> None:
    code = (
        "import sys; from training.settings import Algorithm; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'vllm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
