"""What a server refuses of a search before anything is written."""

from prm.errors import InvalidInput
from prm.scorer import StepScorer
from prm.tasks import off_loop_if_long
from search.generator import Generator
from search.strategies.base import StrategySettings
from server.schemas.search import SearchRequest


def check_candidates(strategy: StrategySettings, limit: int) -> None:
    """Raises InvalidInput for more candidates at a time than the server takes on."""
    if strategy.most_candidates <= limit:
        return
    sizes = strategy.sizes
    shown = " and ".join(f"{name} {value}" for name, value in sizes.items())
    total = "" if len(sizes) == 1 else f", {strategy.most_candidates} candidates at a time"
    raise InvalidInput(
        f"strategy.n: {shown}{total}; this server takes on at most {limit} candidates a search. "
        f"Lower {' or '.join(sizes)}, or raise the server's RUNG_MAX_CANDIDATES",
        param="strategy.n",
    )


def check_tokens(strategy: StrategySettings, tokens: int | None) -> None:
    """Raises InvalidInput for a budget of less than a token for each candidate; None: no limit."""
    if tokens is None or tokens >= strategy.most_candidates:
        return
    lower = " or ".join(f"strategy.{name}" for name in strategy.sizes)
    raise InvalidInput(
        f"budget.tokens {tokens} does not pay one token for each of {strategy.most_candidates} "
        f"candidates; raise it or lower {lower}",
        param="budget.tokens",
    )


async def check_context(request: SearchRequest, scorer: StepScorer, generator: Generator) -> None:
    """Raises InvalidInput where candidates may outgrow what the PRM reads, but not the policy.

    Of a policy whose context is not known here, `max_tokens` says how much it may write.
    """
    limit, context = scorer.context_limit, getattr(generator, "context_limit", None)
    if context is not None and context <= limit:
        return
    prm, messages = scorer.version.key, request.to_messages()
    size = sum(len(message.content) for message in messages)
    try:
        prompt = await off_loop_if_long(size, scorer.prompt_tokens, messages)
    except InvalidInput as error:
        raise InvalidInput(f"PRM {prm}: {error}", param=error.param or "problem") from error
    wanted = request.sampling.max_tokens
    may_write = wanted if context is None else min(wanted, context - prompt)
    if prompt + may_write > limit:
        raise InvalidInput(
            f"sampling.max_tokens: {wanted} after a prompt of {prompt} tokens lets candidates grow "
            f"to {prompt + may_write} tokens, and PRM {prm} reads at most {limit}; lower it to "
            f"{limit - prompt}, or name a PRM that reads more",
            param="sampling.max_tokens",
        )
