"""Tokens per second of batch sampling: our engine, `transformers.generate` and vLLM, side by side.

    python -m benchmarks.sampling --policy models/rung-arith-policy/1 --json out.json

Each contestant is a process group of its own that loads the policy, warms up and waits. A round
runs them one after the other, and those whose turn it is not are stopped (SIGSTOP), so that nobody
measures a neighbour's idling. All do the same work in the same float32: one problem, `--sequences`
samples of exactly `--tokens` tokens at temperature 1, end of turn ignored.

`rung` runs with the threads that the server gives its engine, all cores but one; the others take
what is best for them: all cores.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from benchmarks.contestant import ROOT, Contestant, ratios, serve_turns

PROBLEM = "Evaluate (17+5)*3-(40-26)"
CONTESTANTS = ("rung", "transformers", "vllm-offline", "vllm-serve")
# vLLM chooses its own cores here, as a server of it would: see docs/performance.md.
VLLM_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}
# Targets of the project, on two cores.
LEAST_TOKENS_PER_S = 5000.0
LEAST_SHARE_OF_VLLM = 0.8


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a contestant does in a round."""

    policy: Path
    batches: int
    sequences: int
    tokens: int
    threads: int
    vllm: Path
    is_eager: bool


# --- the contestants: each returns a function that does one round and counts its tokens ----------


def rung(work: Work) -> Callable[[], int]:
    """The sampler of our engine process, with the threads that it would have there."""
    import torch

    from prm.chat import ChatTokenizer
    from prm.engine.model import CausalLM
    from prm.engine.sampler import Sampler, SamplingParams

    torch.set_num_threads(work.threads)
    tokenizer = ChatTokenizer(work.policy)
    model = CausalLM.load(work.policy)
    model.fuse()  # as the engine process does
    sampler = Sampler(model, tokenizer, max_batch=work.sequences)
    prompts = [_prompt_ids(work.policy)] * work.sequences
    params = SamplingParams(temperature=1.0, max_tokens=work.tokens, ignore_eos=True)

    def sample() -> int:
        done = sampler.generate(prompts, params, range(work.sequences))
        return sum(len(completion.ids) for completion in done)

    return sample


def transformers(work: Work) -> Callable[[], int]:
    """`generate` with its default KV cache, all sequences in one batch."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(work.policy, dtype=torch.float32)
    prompt = torch.tensor([_prompt_ids(work.policy)] * work.sequences)

    def sample() -> int:
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            min_new_tokens=work.tokens,
            max_new_tokens=work.tokens,
        )
        return int(ids[:, prompt.shape[1] :].numel())

    return sample


def vllm_offline(work: Work) -> Callable[[], int]:
    """`LLM.generate`, one prompt with n samples."""
    from vllm import LLM, SamplingParams

    ids = _prompt_ids(work.policy)
    engine = LLM(
        str(work.policy),
        dtype="float32",
        max_model_len=len(ids) + work.tokens,
        max_num_seqs=work.sequences,
        enforce_eager=work.is_eager,
    )
    params = SamplingParams(
        n=work.sequences, temperature=1.0, max_tokens=work.tokens, ignore_eos=True
    )

    def sample() -> int:
        (output,) = engine.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        return sum(len(completion.token_ids) for completion in output.outputs)

    return sample


def vllm_serve(work: Work) -> Callable[[], int]:
    """vLLM's HTTP server, asked for n samples in one request."""
    ids = _prompt_ids(work.policy)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # In this process group: it ends and it stops with us.
    server = subprocess.Popen(
        [
            *(str(work.vllm), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(work.policy), "--served-model-name", "policy", "--dtype", "float32"),
            *("--host", "127.0.0.1", "--port", url.rpartition(":")[2]),
            *("--max-model-len", str(len(ids) + work.tokens)),
            *("--max-num-seqs", str(work.sequences), "--disable-uvicorn-access-log"),
            *(("--enforce-eager",) if work.is_eager else ()),
        ],
        stdout=sys.stderr,
    )
    body = {
        "model": "policy",
        "prompt": ids,
        "n": work.sequences,
        "temperature": 1.0,
        "max_tokens": work.tokens,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    def sample() -> int:
        with urllib.request.urlopen(request) as response:
            return int(json.load(response)["usage"]["completion_tokens"])

    while not _is_healthy(url):
        assert server.poll() is None, "vLLM ended"
        time.sleep(0.2)
    return sample


def _prompt_ids(policy: Path) -> list[int]:
    """Ids of the problem's chat. Without our packages: vLLM's environment does not have them."""
    from transformers import AutoTokenizer

    chat = [{"role": "user", "content": PROBLEM}]
    tokenizer = AutoTokenizer.from_pretrained(policy)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health") as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


# --- the parent: starts them, takes turns, tells the result --------------------------------------


def take_turns(name: str, work: Work) -> None:
    """The child's side: warm up, then a round for each line on stdin."""
    makers = dict(zip(CONTESTANTS, (rung, transformers, vllm_offline, vllm_serve), strict=True))
    sample = makers[name](work)
    sample()

    def round_of_batches(_: object) -> dict[str, float]:
        started = time.perf_counter()
        tokens = sum(sample() for _ in range(work.batches))
        seconds = time.perf_counter() - started
        assert tokens == work.batches * work.sequences * work.tokens, tokens
        return {"tokens_per_s": tokens / seconds}

    serve_turns(round_of_batches)


def start(name: str, arguments: argparse.Namespace, log: IO[bytes]) -> Contestant:
    """A contestant by name; it parses the same command line as we did."""
    python = str(arguments.vllm) if name == "vllm-offline" else sys.executable
    command = [python, "-m", "benchmarks.sampling", *sys.argv[1:], f"--contestant={name}"]
    return Contestant(name, command, log, environment=VLLM_ENVIRONMENT)


def compete(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second of every contestant in every round."""
    rates: dict[str, list[float]] = {}
    contestants = []
    try:
        with open(arguments.log, "wb") as log:
            for name in arguments.contestants:
                contestants.append(start(name, arguments, log))
                rate = contestants[-1].take_turn()["tokens_per_s"]
                print(f"{name}: ready, {rate:,.0f} tokens/s", flush=True)
            for round_ in range(arguments.rounds):
                for contestant in contestants:
                    rate = contestant.take_turn()["tokens_per_s"]
                    rates.setdefault(contestant.name, []).append(rate)
                    print(f"round {round_ + 1} {contestant.name}: {rate:,.0f} tokens/s", flush=True)
    finally:
        for contestant in contestants:
            contestant.close()
    return rates


def report(rates: dict[str, list[float]], arguments: argparse.Namespace) -> dict[str, object]:
    """Print the table and the targets; return all of it."""
    print("\n| | tokens/s, median | min to max |\n| --- | ---: | ---: |")
    for name, values in rates.items():
        print(f"| {name} | {_median(values):,.0f} | {min(values):,.0f} to {max(values):,.0f} |")
    ours = _median(rates["rung"])
    checks = {f"at least {LEAST_TOKENS_PER_S:,.0f} tokens/s": ours >= LEAST_TOKENS_PER_S}
    for name in rates:
        if name.startswith("vllm"):
            share = statistics.median(ratios(rates["rung"], rates[name]))
            checks[f"{share:.2f} of {name}, at least {LEAST_SHARE_OF_VLLM}"] = (
                share >= LEAST_SHARE_OF_VLLM
            )
    for what, is_met in checks.items():
        print(f"rung: {what}: {'met' if is_met else 'NOT MET'}")
    return {
        "command": " ".join(["python", "-m", "benchmarks.sampling", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "threads_of_rung": arguments.threads,
        "load_before": arguments.load,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "tokens_per_s": rates,
        "checks": checks,
    }


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def main() -> None:
    """Measure, or be a contestant."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--policy", type=Path, default=ROOT / "models/rung-arith-policy/1")
    parser.add_argument("--batches", type=int, default=3, help="one after the other in a round")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument(
        "--vllm-eager", action="store_true", help="vLLM without torch.compile, slower here"
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--log", type=Path, default=Path(os.devnull))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        work = Work(
            policy=arguments.policy,
            batches=arguments.batches,
            sequences=arguments.sequences,
            tokens=arguments.tokens,
            threads=arguments.threads,
            vllm=arguments.vllm,
            is_eager=arguments.vllm_eager,
        )
        take_turns(arguments.contestant, work)
        return
    arguments.load = os.getloadavg()[0]
    result = report(compete(arguments), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
