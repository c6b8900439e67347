"""Says that a pointer has changed, and hears it, over Redis: so that nobody waits for a poll.

A word of mouth and no more: it carries a name, nobody waits for it, and who misses it finds out by
looking (`RUNG_RELOAD_POLL_S`). Without Redis, and while it is away, that is what everybody does.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pydantic import SecretStr
from redis import Redis, RedisError
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

logger = logging.getLogger(__name__)

CHANNEL = "rung:versions"
# Of a Redis that does not answer, whatever we say; nobody is kept waiting for it.
TIMEOUT_S = 2.0
# A connection that nothing is heard of is asked for a sign of life.
HEALTH_S = 5.0
BACKOFF_S = (0.1, 5.0)


def announce(url: SecretStr | None, name: str) -> bool:
    """Tell every server that this name's pointer has changed, if there is a Redis; whether it was.

    Best effort: a Redis that is away is said in the log and is no error. Takes up to `TIMEOUT_S`.
    """
    if url is None:
        return False
    try:
        with Redis.from_url(
            url.get_secret_value(),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        ) as redis:
            redis.publish(CHANNEL, name)
    except (RedisError, OSError) as error:
        logger.warning("%s changed, and Redis cannot be told: %s", name, error)
        return False
    return True


class Announcements:
    """One server's ear, and its mouth. `start` first, `close` last; neither ever fails.

    `on_name` is called with every name that is announced, and with None when Redis is heard again:
    what was said meanwhile is lost.
    """

    def __init__(self, url: SecretStr | None, on_name: Callable[[str | None], None]) -> None:
        self._url = url
        self._on_name = on_name
        self._listener: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[bool]] = set()
        self.is_heard = False

    def start(self) -> None:
        """Begin to listen, where there is a Redis; returns at once."""
        if self._url is not None:
            self._listener = asyncio.create_task(self._listen(self._url), name="announcements")

    def tell(self, name: str) -> None:
        """Announce a name in the background."""
        if self._url is not None:
            task = asyncio.create_task(asyncio.to_thread(announce, self._url, name))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        """Say what is still to be said, and listen no more."""
        await asyncio.gather(*self._telling)
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def _listen(self, url: SecretStr) -> None:
        wait_s, longest_s = BACKOFF_S
        while True:
            try:
                await self._hear(url.get_secret_value())
            except (RedisError, OSError) as error:
                log = logger.warning if self.is_heard or wait_s == BACKOFF_S[0] else logger.debug
                log("Redis is not heard, versions are looked for instead: %s", error)
            if self.is_heard:
                self.is_heard, wait_s = False, BACKOFF_S[0]
            await asyncio.sleep(wait_s)
            wait_s = min(longest_s, 2 * wait_s)

    async def _hear(self, url: str) -> None:
        """Until the connection ends, or is silent though asked for a sign of life."""
        async with (
            redis_asyncio.from_url(
                url,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
            ) as redis,
            redis.pubsub() as heard,
        ):
            await heard.subscribe(CHANNEL)
            is_asked = False
            while True:
                message = await heard.get_message(timeout=HEALTH_S)
                if message is not None:
                    is_asked = False
                    self._take(message)
                elif is_asked:
                    raise RedisError(f"no sign of life for {HEALTH_S:g} s")
                else:
                    is_asked = True
                    await heard.ping()

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "subscribe":
                logger.info("announcements of versions are heard")
                self.is_heard = True
                self._on_name(None)
            case "message":
                self._on_name(message["data"].decode(errors="replace"))
