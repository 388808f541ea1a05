"""Serve a page of Gradio's at 127.0.0.1: without its share links, its analytics, and anything that the browser would ask another server."""

import importlib.util
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eval.errors import UserError

HOST = "127.0.0.1"
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_POLL_SECONDS, _GOODBYE_SECONDS = 0.05, 3.0


def check_extra() -> None:
    """Refuse an environment without Gradio.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "explore needs the package gradio, which is not installed here. Install the extra with "
            "pip install -c constraints.txt -e '.[explore]'"
        )


@contextmanager
def bound(port: int) -> Iterator[socket.socket]:
    """A socket at a port of this machine alone; 0: at any that is free.

    Raises:
        UserError: it is taken, or not allowed.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError as error:
            raise UserError(f"--port {port}: cannot be used ({error.strerror}). Give another one, or 0 for any that is free") from error
        yield listener


@contextmanager
def uploads() -> Iterator[None]:
    """Where pictures that are uploaded are gone afterwards; enter it before Gradio is imported, which then sends nothing home either."""
    with tempfile.TemporaryDirectory(prefix="explore-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        yield


def serve(page: Any, listener: socket.socket) -> None:
    """Serve the page until a signal.

    Args:
        page: a `rerank.explore.page.Page`.
    """
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(_guarded(page), log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)  # where it sets no handlers of signals
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(_POLL_SECONDS)
        if not server.started:
            raise UserError("the page could not be started; its server says why above")
        print(f"page       http://{HOST}:{listener.getsockname()[1]} (on this machine alone; Ctrl-C ends it)", flush=True)
        thread.join()
    finally:
        server.should_exit = True
        thread.join(_GOODBYE_SECONDS)


def _guarded(page: Any) -> Any:
    """The page as an ASGI application that tells browsers to ask no other server, and answers to no other name than this machine's own:
    a page from elsewhere whose name leads here cannot read it."""
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    mounted = gradio.mount_gradio_app(
        app, page.blocks, path="/", server_name=HOST, footer_links=[], run_history=False, ssr_mode=False, **page.looks
    )

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await mounted(scope, receive, with_policy)

    return guarded
