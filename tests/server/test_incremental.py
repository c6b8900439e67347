"""What is scored again costs nothing, and what is no number is no score: over HTTP."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from prm.files import hash_file
from tests.factories import POLICY, PRM
from tests.server.conftest import rung_serve

STEPS = ["3+4=7", "7*2=14", "14-5=9", "Answer: 9"]


def score(http: httpx2.Client, problem: str, *candidates: list[str]) -> Any:
    items = [{"problem": problem, "steps": steps} for steps in candidates]
    response = http.post("/v1/prm/score", json={"model": PRM, "items": items, "include": ["raw"]})
    assert response.status_code == 200, response.text
    return response.json()


def prompt_tokens(problem: str) -> int:
    return len(f"<{problem}<<")  # three control tokens, one token per byte


def test_the_next_round_pays_for_its_new_step_alone(http: httpx2.Client) -> None:
    problem = "~ Round by round: (3+4)*2-5"
    before = 0
    for end in range(1, len(STEPS) + 1):
        answer = score(http, problem, STEPS[:end])
        total = prompt_tokens(problem) + len("\n".join(STEPS[:end]))
        usage = answer["usage"]
        assert usage["prompt_tokens"] == total
        assert usage["cached_tokens"] + usage["scored_tokens"] == 2 * total
        # The last token of the round before was predicted, not read: it is new now. In the first
        # one, the token that begins every chat may be known from other tests.
        assert usage["cached_tokens"] in ((2 * (before - 1),) if before else (0, 2))
        (item,) = answer["data"]
        assert [step["cached"] for step in item["steps"]] == [True] * (end - 1) + [False]
        before = total


def test_candidates_of_one_problem_share_its_prompt(http: httpx2.Client) -> None:
    problem = "Shared by all: (3+4)*2-5, " + "and so on, " * 8
    count = 6
    candidates = [[f"{k}: 3+4=7", f"Answer: {k}"] for k in range(count)]
    usage = score(http, problem, *candidates)["usage"]
    own = sum(len("\n".join(steps)) for steps in candidates)
    assert usage["scored_tokens"] <= 2 * (prompt_tokens(problem) + own)
    assert usage["cached_tokens"] >= 2 * (count - 1) * (prompt_tokens(problem) - 1)


def test_what_was_scored_before_is_answered_without_the_model(http: httpx2.Client) -> None:
    problem = "Asked twice"
    first, second = score(http, problem, STEPS), score(http, problem, STEPS)
    assert second["usage"]["scored_tokens"] == 0
    assert second["timing_ms"]["inference"] == 0
    for ours, theirs in zip(first["data"][0]["steps"], second["data"][0]["steps"], strict=True):
        assert ours["raw"] == theirs["raw"]
        assert theirs["cached"]


def test_scores_are_the_same_cold_warm_alone_and_in_a_crowd(tiny_models: Path) -> None:
    branches = [[*STEPS[:cut], f"{other}", "Answer: 1"] for cut in range(4) for other in "xyz"]
    # A cache with room for little more than one item: prefixes come and go all the time.
    with (
        rung_serve(tiny_models, RUNG_CACHE_MB="1", RUNG_TOKEN_BUDGET="64") as running,
        httpx2.Client(base_url=running.url, timeout=60) as http,
    ):
        alone = [score(http, "One of many", steps)["data"][0]["steps"] for steps in branches]
        together = score(http, "One of many", *branches)["data"]
        with ThreadPoolExecutor(8) as pool:
            crowd = list(
                pool.map(lambda steps: score(http, "One of many", steps)["data"][0], branches * 4)
            )
    for place, steps in enumerate(alone):
        raw = [step["raw"] for step in steps]
        for other in (together[place], *crowd[place :: len(branches)]):
            assert [step["raw"] for step in other["steps"]] == pytest.approx(raw, abs=1e-4)


def test_a_search_uses_the_policys_log_probs_as_the_reference_pass(tiny_models: Path) -> None:
    body = {
        "policy": POLICY,
        "prm": PRM,
        "problem": "Evaluate 1+2",
        "strategy": {"type": "best_of_n", "n": 4},
        "sampling": {"max_tokens": 40, "seed": 3},
    }
    with (
        rung_serve(tiny_models) as running,
        httpx2.Client(base_url=running.url, timeout=60) as http,
    ):
        response = http.post("/v1/search", json=body)
        assert response.status_code == 200, response.text
        usage = response.json()["usage"]
    # The tiny policy writes bytes that are no UTF-8 too; a text of such is other tokens when read.
    assert usage["cached_tokens"] > 0


@pytest.fixture(scope="module")
def faulty(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A PRM that computes NaN wherever it has read a Z."""
    root = shutil.copytree(tiny_models, tmp_path_factory.mktemp("faulty") / "models")
    folder = root / PRM / "1"
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(weights)
    # The head keeps the numbers that the embeddings lose.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    z = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Z").ids[0]
    tensors["model.embed_tokens.weight"][z] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    manifest = json.loads((folder / "manifest.json").read_text())
    for path in (weights, config):
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with (
        rung_serve(root) as running,
        httpx2.Client(base_url=running.url, timeout=60) as http,
    ):
        yield http


def test_what_is_no_number_is_no_score(faulty: httpx2.Client) -> None:
    items = [{"problem": "p", "steps": ["a", "b"]}, {"problem": "p", "steps": ["a", "ZZ", "b"]}]
    response = faulty.post("/v1/prm/score", json={"model": PRM, "items": items})
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "model_fault"
    assert f"items[1]: {PRM}@1: " in error["message"]
    assert "no finite number" in error["message"]
    assert score(faulty, "p", ["a", "b"])["data"][0]["score"] > 0


def test_a_bad_item_fails_its_own_request_only(faulty: httpx2.Client) -> None:
    def post(steps: list[str]) -> int:
        items = [{"problem": "p", "steps": steps}]
        return faulty.post("/v1/prm/score", json={"model": PRM, "items": items}).status_code

    texts = [["aZ", "b"] if k % 4 == 0 else ["a", f"b{k}"] for k in range(24)]
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(post, texts))
    assert statuses == [500 if k % 4 == 0 else 200 for k in range(24)]
