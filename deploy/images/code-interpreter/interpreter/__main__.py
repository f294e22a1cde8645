from __future__ import annotations

import logging
import os

import uvicorn

from interpreter.app import App


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    uvicorn.run(
        App(),
        host="0.0.0.0",
        port=int(os.environ.get("SANDLOT_INTERPRETER_PORT", "49999")),
        loop="asyncio",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=640,
    )


if __name__ == "__main__":
    main()
