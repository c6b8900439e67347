"""From a finished search to the answers of a chat completion, ranked, and what they cost."""

from collections.abc import Sequence
from typing import Any

from search.types import Candidate
from server.schemas.chat import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    ChatUsage,
    Choice,
    CompletionDetails,
    FinishReason,
)
from server.schemas.search import CandidateOut, SearchResponse

_ELSEWHERE = {"object", "created", "text", "usage"}


def chat_id(search_id: str) -> str:
    """A completion's id; the search's own stands in `search.id`."""
    return f"chatcmpl-{search_id.removeprefix('search-')}"


def fingerprint(policy: str, version: str) -> str:
    """What wrote the answers: a policy's name and version."""
    return f"{policy}@{version}"


def chat_completion(
    body: ChatRequest, result: SearchResponse, tree: Sequence[Candidate]
) -> ChatCompletion:
    """The `n` best answers, fewer where the search ended with fewer candidates."""
    answers = ranked(result)[: body.n or 1]
    return ChatCompletion(
        id=chat_id(result.id),
        created=result.created,
        model=body.model,
        choices=[_choice(place, answer) for place, answer in enumerate(answers)] or [_no_choice()],
        usage=chat_usage(result, answers, tree),
        system_fingerprint=fingerprint(result.policy, result.policy_version),
        search=search_out(body, result),
    )


def ranked(result: SearchResponse) -> list[CandidateOut]:
    """The candidates as the strategy ranks them, the winner first."""
    by_index = {candidate.index: candidate for candidate in result.candidates or ()}
    return [by_index[index] for index in result.ranking]


def finish_reason(candidate: CandidateOut) -> FinishReason:
    """In OpenAI's words a text that a budget cut, or a prune, ended by length."""
    return "stop" if candidate.finish_reason == "stop" else "length"


def chat_usage(
    result: SearchResponse, answers: Sequence[CandidateOut], tree: Sequence[Candidate]
) -> ChatUsage:
    """What was written for all answers together; a part that two of them share counts once."""
    usage = result.usage
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.generated_tokens,
        total_tokens=usage.prompt_tokens + usage.generated_tokens,
        completion_tokens_details=CompletionDetails(
            rejected_prediction_tokens=usage.generated_tokens - _tokens_in(answers, tree)
        ),
        search=usage.model_dump(),
    )


def search_out(body: ChatRequest, result: SearchResponse) -> dict[str, Any]:
    """`/v1/search`'s answer, without what the completion says elsewhere."""
    asked = body.search.include if body.search else ()
    unasked = {"candidates", "tree"} - set(asked)
    return result.model_dump(exclude=_ELSEWHERE | unasked)


def _tokens_in(answers: Sequence[CandidateOut], tree: Sequence[Candidate]) -> int:
    counted: set[int] = set()
    tokens = 0
    for answer in answers:
        index: int | None = answer.index
        while index is not None and index not in counted:
            counted.add(index)
            node = tree[index]
            tokens += node.tokens
            index = node.parent
            if index is not None:
                tokens -= tree[index].tokens
    return tokens


def _choice(place: int, answer: CandidateOut) -> Choice:
    return Choice(
        index=place,
        message=AnswerMessage(content=answer.text),
        finish_reason=finish_reason(answer),
        score=answer.score,
        answer=answer.answer,
        tests=answer.tests,
    )


def _no_choice() -> Choice:
    """The budget was used up before anything was written."""
    return Choice(
        index=0, message=AnswerMessage(content=""), finish_reason="length", score=None, answer=None
    )
