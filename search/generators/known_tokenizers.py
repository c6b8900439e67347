"""Tokenizers at hand that are those of a policy server's models, each proven before it is used.

A policy that is registered here and served there under the same name has, most likely, the same
tokenizer. Then texts become ids in this process, in some 0.05 ms, where a request for them costs
either side more than a millisecond, and stop strings can be told as tokens.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput, ModelFolderError
from prm.types import Message

# Ids whose texts are compared, evenly over the vocabulary.
MOST_COMPARED = 4096
# Digits, spaces, line ends, marks of mathematics, accents, other scripts and half an emoji's worth.
PROBE = (
    'Step 1: 3+4·½ = 5.50;  then\n\n\tx_{12}^2 ≤ \\frac{1}{2}\r\n"Größe", don\'t  (naïve)\n'
    "数学 の 問題 — вопрос №7 😀👍🏽 100000000 1e-7 ### Answer:42 <a|b> </think-not>   \n"
)
_CHATS = (
    (Message(role="user", content=PROBE),),
    (Message(role="system", content="Be brief.\n"), Message(role="user", content=" 2+3? ")),
    (
        Message(role="user", content="2+3?"),
        Message(role="assistant", content="5"),
        Message(role="user", content="And 4+5?"),
    ),
)

logger = logging.getLogger(__name__)


class TokenRoutes(Protocol):
    """The look-ups of a policy server."""

    async def look_up_prompt(self, model: str, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of a chat up to the assistant's turn."""
        ...

    async def look_up_response(self, model: str, response: str) -> tuple[int, ...]:
        """Ids of what an assistant wrote."""
        ...

    async def look_up_text(self, model: str, ids: Sequence[int]) -> str:
        """The text of these ids."""
        ...


class KnownTokenizers:
    """Tokenizers in `folders`, by the name of a model that may be served with the same one."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._proven: dict[str, ChatTokenizer | None] = {}
        self._proving = asyncio.Lock()

    async def of(self, model: str, server: TokenRoutes) -> ChatTokenizer | None:
        """The tokenizer of a served model, None where none at hand is it.

        Asks the server at the first time. Raises Unavailable when it does not answer.
        """
        if model not in self._folders:
            return None
        if model not in self._proven:
            async with self._proving:
                if model not in self._proven:
                    self._proven[model] = await self._prove(model, server)
        return self._proven.get(model)

    def forget(self) -> None:
        """Prove all anew: whoever answers next may be another server."""
        self._proven.clear()

    async def _prove(self, model: str, server: TokenRoutes) -> ChatTokenizer | None:
        try:
            tokenizer = await asyncio.to_thread(ChatTokenizer, self._folders[model])
        except ModelFolderError as error:
            logger.warning("%s is asked of the policy server: %s", model, error)
            return None
        if await speak_alike(tokenizer, server, model):
            return tokenizer
        logger.warning(
            "the policy server's %s has another tokenizer or chat template than the %s that is "
            "registered here; its own is asked for every text",
            model,
            model,
        )
        return None


async def speak_alike(tokenizer: ChatTokenizer, server: TokenRoutes, model: str) -> bool:
    """Whether a tokenizer and a server make the same ids of chats and texts, and texts of ids.

    Where both refuse a chat, by the template or for want of a token, they agree on it.
    """
    for chat in _CHATS:
        theirs = await _unless_refused(server.look_up_prompt(model, chat))
        if theirs != await _unless_refused(asyncio.to_thread(tokenizer.encode_prompt, chat)):
            return False
    texts = asyncio.to_thread(lambda: tokenizer.encode_response(PROBE).ids)
    if await _unless_refused(server.look_up_response(model, PROBE)) != await _unless_refused(texts):
        return False
    ids = await asyncio.to_thread(_sample, tokenizer)
    return tokenizer.decode(ids) == await server.look_up_text(model, ids)


async def _unless_refused(ids: Awaitable[tuple[int, ...]]) -> tuple[int, ...] | None:
    try:
        return await ids
    except InvalidInput:
        return None


def _sample(tokenizer: ChatTokenizer) -> list[int]:
    """Ids evenly over the vocabulary; of control tokens only the server would tell a text."""
    ids = [token_id for token_id, text in enumerate(tokenizer.token_texts) if text]
    return ids[:: max(1, -(-len(ids) // MOST_COMPARED))]
