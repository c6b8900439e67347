"""Wire types of `/rerank`: one answer that clients of Cohere, Jina and vLLM read."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from server.schemas.common import Problem, Text, Wire, if_asked
from server.schemas.neighbours import Unsupported, without_unsupported

# Nothing is cut here, so what says how to cut is refused; see `docs/openai.md`.
_FIELDS: Unsupported = {
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "priority": (0,),
    "rank_fields": (["text"],),
    "relevant_spans": ({"mode": "disabled"},),
    "truncate": (False, "NONE"),
    "truncate_prompt_tokens": (),
    "use_activation": (True,),
}


def _text_of(document: Any) -> Any:
    """A document's text: itself, its `text`, or the text parts of its `content`, a part a line."""
    if not isinstance(document, dict):
        return document
    parts = document["content"] if isinstance(document.get("content"), list) else [document]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            'send a string, an object as {"text": "…"}, or one as '
            '{"content": [{"type": "text", "text": "…"}]}'
        )
    return "\n".join(map(str, texts))


class RerankRequest(Wire):
    """Candidate solutions of one problem, to be ranked by a PRM."""

    model: Text = Field(description="A PRM: NAME, or NAME@VERSION")
    query: Problem = Field(description="The problem.")
    documents: list[Annotated[Text, BeforeValidator(_text_of)]] = Field(
        min_length=1, max_length=10_000, description="The candidate solutions."
    )
    top_n: int | None = Field(default=None, ge=0, description="Null and 0: all of them.")
    return_documents: bool | None = None
    user: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, body: Any) -> Any:
        return without_unsupported(body, _FIELDS)


class DocumentOut(BaseModel):
    """A candidate, as it was sent."""

    text: str
    multi_modal: None = None


class RerankResult(BaseModel):
    """One candidate's place: `index` is that of the request, the score the PRM's, in [0, 1]."""

    index: int
    relevance_score: float
    document: DocumentOut | None = if_asked()


class RerankUsage(BaseModel):
    """Tokens as in `/v1/prm/score`."""

    prompt_tokens: int
    total_tokens: int
    cached_tokens: int
    scored_tokens: int


class ApiVersion(BaseModel):
    """Which of Cohere's APIs the answer follows."""

    version: Literal["1", "2"]
    is_experimental: bool = False


class BilledUnits(BaseModel):
    """Cohere's accounts: a request is one search."""

    search_units: int = 1


class RerankMeta(BaseModel):
    """What Cohere's clients read beside the results."""

    api_version: ApiVersion
    billed_units: BilledUnits = BilledUnits()


class RerankResponse(BaseModel):
    """The candidates, best first."""

    id: str
    model: str
    model_version: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: RerankMeta
