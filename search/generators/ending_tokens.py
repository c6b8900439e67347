"""Tokens that end a text: those whose own text holds a stop string.

vLLM looks for stop strings in its front end, in the text that comes out of the engine. The engine
hears of it a step or two later, and has written a token or two for nothing until then. A stop token
ends the text in the engine itself. The strings are sent as well: one may lie over two tokens.
"""

from functools import lru_cache

from prm.chat import ChatTokenizer

# Each goes along with every continuation; where more than so many qualify, strings alone do.
MOST_ENDING_TOKENS = 256
HALF_A_CHARACTER = "\ufffd"


@lru_cache(maxsize=64)
def ending_tokens(
    tokenizer: ChatTokenizer, stops: frozenset[str], *, most: int = MOST_ENDING_TOKENS
) -> tuple[int, ...]:
    """Ids of the tokens in whose text one of these strings is, in ascending order.

    Empty where there are more than `most`. Left out are tokens that hold part of a character: what
    they say hangs on their neighbours.
    """
    found = tuple(
        token_id
        for token_id, text in enumerate(tokenizer.token_texts)
        if HALF_A_CHARACTER not in text and any(stop in text for stop in stops)
    )
    return found if len(found) <= most else ()
