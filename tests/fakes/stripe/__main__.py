"""`python -m tests.fakes.stripe --port 12111 --webhook http://127.0.0.1:8000/webhooks/stripe`"""

from __future__ import annotations

import argparse
import threading

from .server import Server, deliver_forever
from .state import FakeStripe


def main() -> None:
    parser = argparse.ArgumentParser(prog="fake-stripe", description=__doc__)
    parser.add_argument("--port", type=int, default=12111)
    parser.add_argument("--webhook", default="http://127.0.0.1:8000/webhooks/stripe")
    parser.add_argument("--secret", default="whsec_fake")
    given = parser.parse_args()
    state = FakeStripe(secret=given.secret)
    server = Server(state, given.port)
    stop = threading.Event()
    threading.Thread(
        target=deliver_forever, args=(state, given.webhook), kwargs={"stop": stop}, daemon=True
    ).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        stop.set()


if __name__ == "__main__":
    main()
