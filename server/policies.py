"""Who writes the steps: policies in the engine process, and those of a policy server."""

from collections.abc import Mapping

from prm.errors import UnknownModel
from search.generator import Generator
from search.generators.openai_http import OpenAIServer


class Policies:
    """Generators by name. A policy server's models come before local ones of the same name."""

    def __init__(self, local: Mapping[str, Generator], remote: OpenAIServer | None) -> None:
        self._local = dict(local)
        self._remote = remote

    async def get(self, name: str) -> Generator:
        """The policy of this name. Raises UnknownModel, or Unavailable for a dead policy server."""
        if self._remote is not None:
            served = await self._remote.models()
            if name in served:
                return self._remote.generator(name)
        if name in self._local:
            return self._local[name]
        known = sorted({*self._local, *(await self.remote_names())})
        raise UnknownModel(
            f"no policy named {name!r} is served here; there is {', '.join(known) or 'none'}",
            param="policy",
        )

    async def remote_names(self) -> list[str]:
        """Models of the policy server. Raises Unavailable when it does not answer."""
        return list(await self._remote.models()) if self._remote else []

    async def aclose(self) -> None:
        """Close the connections to the policy server."""
        if self._remote is not None:
            await self._remote.aclose()
