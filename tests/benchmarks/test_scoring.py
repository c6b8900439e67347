"""The scoring benchmark: that its workloads are what they say, and that all of it runs."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.contestant import ROOT
from benchmarks.scoring.matches import Match, matches
from benchmarks.scoring.peers import TOKEN_BUDGET, _padded_batches
from benchmarks.scoring.report import Check, Row, check_lines
from benchmarks.scoring.shapes import BUNDLED, LARGE, SMALL, TINY, Shape, model_folder
from benchmarks.scoring.texts import mixed_requests
from benchmarks.scoring.workloads import Item, Sizes, beam, best_of, flat

SIZES = Sizes()


@pytest.mark.parametrize("workload", [flat, best_of, beam])
@pytest.mark.parametrize("shape", [Shape.of(BUNDLED), SMALL, LARGE])
def test_every_round_has_ids_of_its_own_that_the_model_can_read(
    workload: object, shape: Shape
) -> None:
    assert callable(workload)
    items = [item for batch in workload(shape, SIZES, 1) for item in batch]
    assert max(len(item.ids) for item in items) < shape.max_position_embeddings
    assert all(0 <= id_ < shape.vocab_size for item in items for id_ in item.ids)
    assert workload(shape, SIZES, 1) == workload(shape, SIZES, 1)
    again = [item for batch in workload(shape, SIZES, 2) for item in batch]
    assert not {item.ids[:16] for item in items} & {item.ids[:16] for item in again}


def test_flat_solutions_are_as_long_as_the_target_says_and_share_nothing() -> None:
    (items,) = flat(LARGE, SIZES, 1)
    lengths = [len(item.ids) for item in items]
    assert len(items) == 256
    assert min(lengths) >= 40
    assert max(lengths) <= 400
    assert len({item.ids[:8] for item in items}) == 256
    assert all(item.first == 1 for item in items)


def test_the_candidates_of_one_problem_share_at_least_half_of_themselves() -> None:
    (items,) = best_of(SMALL, SIZES, 1)
    assert len(items) == 64
    assert len({item.ids[: item.first] for item in items}) == 1
    assert all(2 * item.first >= len(item.ids) for item in items)


def test_a_beam_continues_a_survivor_of_the_round_before() -> None:
    batches = beam(SMALL, SIZES, 1)
    assert [len(batch) for batch in batches] == [16] * 12
    for before, after in pairwise(batches):
        parents = {
            parent.ids
            for item in after
            for parent in before
            if item.ids[: len(parent.ids)] == parent.ids
        }
        assert len(parents) == 4
        assert all(any(item.ids[: len(p)] == p for p in parents) for item in after)


def test_mixed_requests_are_distinct_and_of_all_sizes() -> None:
    requests = mixed_requests(200, 1)
    assert {len(request) for request in requests} == set(range(1, 9))
    items = [item for request in requests for item in request]
    assert {len(item.steps) for item in items} == set(range(1, 41))
    assert len({item.problem for item in items}) == len(items)


def test_a_random_model_has_the_parameters_that_its_shape_counts(tmp_path: Path) -> None:
    folder = model_folder("tiny", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert Shape.of(folder) == TINY
    assert TINY.num_parameters == matrices
    again = AutoModelForCausalLM.from_pretrained(model_folder("tiny", tmp_path / "again"))
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert abs(SMALL.num_parameters / 30e6 - 1) < 0.05
    assert abs(LARGE.num_parameters / 120e6 - 1) < 0.05


def test_scoring_costs_two_operations_a_weight_and_attention_over_pairs() -> None:
    # Three tokens: two are read; the second one sees two.
    assert TINY.scoring_flops([3]) == 2 * 2 * TINY.num_parameters + 4 * 2 * 64 * (1 + 2)


def test_padded_batches_hold_everything_once_within_the_budget() -> None:
    (items,) = flat(LARGE, SIZES, 1)
    places = list(_padded_batches(items, range(len(items))))
    assert [place for some in places for place in some] == list(range(len(items)))
    for some in places:
        assert len(some) * max(len(items[place].ids) for place in some) <= TOKEN_BUDGET


def test_a_sequence_over_the_budget_is_a_batch_of_its_own() -> None:
    items = [Item(ids=(1,) * length, first=1) for length in (9000, 5, 9000)]
    assert list(_padded_batches(items, [0, 1, 2])) == [[0], [1], [2]]


def test_a_target_is_kept_by_the_median() -> None:
    assert Check(what="", values=[1.0, 2.0, 3.0], at_least=2.0).is_met
    assert Check(what="", values=[1.0, 1.9, 3.0], at_least=2.0).is_met is False
    assert Check(what="", values=[0.4, 0.5, 3.0], at_most=0.5).is_met
    assert Check(what="", values=[1.0]).is_met is None


def test_two_who_computed_different_numbers_do_not_compete() -> None:
    match = Match(model="m", dtype="float32", threads=1, turns={"flat-implicit": ("rung", "vllm")})
    answer = {"tokens": 10, "seconds": 1.0, "mean_logprob": -3.0}
    answers = {"rung": [answer], "vllm": [answer | {"seconds": 2.0, "mean_logprob": -3.1}]}
    speed, agreement = check_lines([Row(workload="flat-implicit", match=match, answers=answers)])
    assert speed[2:4] == ("tokens/s over vllm", "2")
    assert agreement[2] == "mean log-prob, distance to vllm's"
    assert agreement[-1] == "NOT MET"


def test_every_row_of_the_table_is_played() -> None:
    found = matches(
        large="120m",
        large_dtypes=["float32"],
        large_threads=2,
        models=["bundled"],
        dtypes=["float32"],
        threads=1,
    )
    played = [row for match in found for row in match.turns]
    assert played == ["flat", "flat-implicit", "best-of-64", "beam", "single", "clients"]
    assert found[0].only(["beam"]).turns == {}


@pytest.mark.slow
def test_all_of_it_runs_and_tells_what_it_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.scoring", "--quick", "--markdown"]
    options = [f"--json={out}", "--rounds=1", f"--log={tmp_path / 'log'}", "--vllm=/nonexistent"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["is_quick"]
    assert len(result["left_out"]) == 1
    assert "no vLLM at /nonexistent" in done.stdout
    rows = {row["workload"]: row for row in result["rows"]}
    assert list(rows) == ["flat", "single", "clients"]
    for row in rows.values():
        assert all(len(check["values"]) == 1 for check in row["checks"])
        assert f"| {row['workload']} | " in done.stdout
    agreed = [c for c in rows["flat"]["checks"] if c["what"].startswith("mean log-prob")]
    assert len(agreed) == 2
    assert all(check["is_met"] for check in agreed)
    assert all(len(a) == 1 for a in rows["flat"]["answers"].values())
    assert rows["single"]["figures"]["server"]["ms"]["median"] > 0
    assert rows["clients"]["figures"]["engine-flat"]["tokens/s"]["median"] > 0
