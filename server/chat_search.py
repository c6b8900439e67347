"""From a chat completion to the search that answers it: strategy, PRM and budget.

the body's `search`  >  the header X-Rung-Strategy  >  the model's prefix  >  a plain sample
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from prm.errors import CallerError, InvalidInput, UnknownModel
from prm.manifest import PrmManifest
from prm.registry import Registry
from search.strategies import Strategy
from search.strategies.best_of_n import BestOfN
from server.schemas.answers import MathAnswersIn
from server.schemas.chat import ChatRequest, SearchIn
from server.schemas.search import BudgetIn, SearchRequest
from server.short_forms import forms, strategy_from, strategy_of

HEADER = "X-Rung-Strategy"
# What the fields of a search are called in a chat completion.
_CHAT_NAMES = {
    "policy": "model",
    "problem": "messages",
    "sampling.max_tokens": "max_completion_tokens",
}


def search_of(body: ChatRequest, header: str | None, registry: Registry) -> SearchRequest:
    """The search that a chat completion asks for. Raises CallerError."""
    policy, by_prefix = _policy_and_prefix(body.model, registry)
    by_header = None if header is None else _strategy_of_header(header)
    asked = body.search or SearchIn()
    plain = BestOfN(n=body.n or 1, selection="first")
    strategy = asked.strategy or by_header or by_prefix or plain
    _check_number(body.n, strategy)
    return SearchRequest(
        policy=policy,
        prm=asked.prm if asked.prm is not None else _default_prm(registry, strategy),
        messages=list(body.messages),
        strategy=strategy,
        sampling=body.sampling(),
        budget=asked.budget or BudgetIn(),
        answers=asked.answers or MathAnswersIn(),
        reasoning_effort=body.reasoning_effort,
        # A choice needs its candidate's reason to end, asked for or not.
        include=tuple({"candidates": None} | dict.fromkeys(asked.include)),
    )


@contextmanager
def named_as_sent() -> Iterator[None]:
    """Errors of a search inside name the fields of the chat completion."""
    try:
        yield
    except CallerError as error:
        message, param = str(error), _chat_name(error.param)
        if error.param is not None and message.startswith(f"{error.param}:"):
            message = f"{param}{message.removeprefix(error.param)}"
        if isinstance(error, UnknownModel) and error.param == "policy":
            message += f"; a strategy may stand before it, as STRATEGY/NAME: {forms()}"
        raise type(error)(message, param=param) from error


def _policy_and_prefix(model: str, registry: Registry) -> tuple[str, Strategy | None]:
    """`best-of-16/NAME` → NAME and the strategy. A policy's own name may have slashes, too."""
    before, slash, name = model.partition("/")
    if not slash or registry.get(model) is not None:
        return model, None
    strategy = strategy_of(before, param="model")
    return (model, None) if strategy is None else (name, strategy)


def _strategy_of_header(header: str) -> Strategy:
    """A short form, or a strategy's JSON as in the body."""
    if not header.lstrip().startswith("{"):
        strategy = strategy_of(header.strip(), param=HEADER)
        if strategy is None:
            raise InvalidInput(
                f"{HEADER}: {header[:100]!r} is no strategy; send JSON, or one of {forms()}",
                param=HEADER,
            )
        return strategy
    try:
        settings = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{HEADER}: not valid JSON: {error}"[:300], param=HEADER) from error
    return strategy_from(settings, header, param=HEADER)


def _check_number(n: int | None, strategy: Strategy) -> None:
    width = getattr(strategy, "n", None)
    if n is not None and width is not None and n > width:
        raise InvalidInput(
            f"n: {n} answers, and strategy {strategy.type} has {width} candidates; lower n, or "
            "raise the strategy's",
            param="n",
        )


def _default_prm(registry: Registry, strategy: Strategy) -> str | None:
    """The PRM of a server that has just one, for a strategy that makes use of it.

    Raises InvalidInput where the caller must choose.
    """
    names = [v.manifest.name for v in registry.live() if isinstance(v.manifest, PrmManifest)]
    if strategy.uses_prm and len(names) == 1:
        return names[0]
    if not strategy.needs_prm:
        return None
    known = f"name one in search.prm: {', '.join(sorted(names))}" if names else "none is served"
    raise InvalidInput(
        f"search.prm: strategy {strategy.type} needs a PRM here, and {known}", param="search.prm"
    )


def _chat_name(param: str | None) -> str | None:
    if param is None or param in _CHAT_NAMES:
        return param and _CHAT_NAMES[param]
    if re.match(r"(strategy|prm|budget|answers)\b", param):
        return f"search.{param}"
    return param.removeprefix("sampling.")
