"""A policy server as a whole: its connections, and a generator for each of its models."""

from typing import Any, Literal

from prm.errors import InvalidInput
from search.generators.openai_client import OpenAIClient
from search.generators.openai_http import OpenAIGenerator
from search.generators.openai_text import TextGenerator

PromptForm = Literal["ids", "text"]


class OpenAIServer(OpenAIClient):
    """A policy server whose models write the steps. `aclose` last, or use as an async context.

    >>> async with OpenAIServer("http://127.0.0.1:8000") as server:
    ...     generator = server.generator(next(iter(await server.models())))
    """

    def __init__(self, base_url: str, *, prompts: PromptForm = "ids", **options: Any) -> None:
        """See `OpenAIClient` for `options`. `prompts`: how the server is told where to go on.

        Raises InvalidInput when that is by text and there is no tokenizer to lay out a chat with.
        """
        super().__init__(base_url, **options)
        if prompts == "text" and self.tokenizer is None:
            raise InvalidInput(
                "a policy server that is told texts needs the policy's tokenizer here; set "
                "policy_tokenizer to a folder with its tokenizer files",
                param="policy_tokenizer",
            )
        self._prompts = prompts

    def generator(self, model: str) -> OpenAIGenerator | TextGenerator:
        """A generator for one of the server's models."""
        if self._prompts == "text" and self.tokenizer is not None:
            return TextGenerator(self, model, self.tokenizer)
        return OpenAIGenerator(self, model)
