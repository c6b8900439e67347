"""Exit code 0 where a URL answers with 200, else 1: an image's health check, which has no curl.

python healthcheck.py [URL], by default this container's own server: ready, not only alive.
"""

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4.0


def is_healthy(url: str) -> bool:
    """Whether a GET is answered with 200 in time."""
    try:
        # Never by a proxy that the environment names: it is asked for this machine itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


if __name__ == "__main__":
    own = f"http://127.0.0.1:{os.environ.get('RUNG_PORT') or 8080}/health/ready"
    sys.exit(0 if is_healthy(sys.argv[1] if len(sys.argv) > 1 else own) else 1)
