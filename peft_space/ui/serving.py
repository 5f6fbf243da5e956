"""The page on a port, and what may be sent to it."""

from __future__ import annotations

import ipaddress
import json
import os
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .page import CSS, MEGABYTE, THEME, build_page
from .workbench import Workbench

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
_QUESTIONS = "/gradio_api/queue/join"
_SENT = frozenset({_QUESTIONS, "/gradio_api/cancel", "/gradio_api/reset"})
_READ = frozenset({"GET", "HEAD", "OPTIONS"})
# a question and what Gradio says around it
_BESIDES = 2**16
_HEADERS = {
    # nothing that a visitor's browser shows may come from, or go to, anywhere else
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; "
    "worker-src 'self' blob:; form-action 'none'; base-uri 'self'; object-src 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Lets the page be read and questions be asked, and nothing else.

    Gradio can be sent files, and files' addresses in the place of any input, which it stores in a folder for temporary
    files. Here the routes for that are closed, and a question's inputs must be texts and numbers.

    Args:
        app: Gradio's.
        max_body: most bytes of a request.
    """

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refused request, and passes any other on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *told]
            await send(message)

        if scope["method"] in _READ:
            await self.app(scope, receive, headed)
            return
        if scope["method"] != "POST" or scope["path"] not in _SENT:
            await PlainTextResponse("This page takes questions and no files.", 403)(scope, receive, headed)
            return
        body = await self._body(receive)
        if body is None:
            await PlainTextResponse("The picture is too large.", 413)(scope, receive, headed)
        elif scope["path"] == _QUESTIONS and not _plain(body):
            await PlainTextResponse("The inputs must be texts and numbers.", 400)(scope, receive, headed)
        else:
            await self.app(scope, _again(body, receive), headed)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; `None` as soon as it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_body:
                return None
            if not message.get("more_body"):
                return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that has been read once more, and then whatever comes next."""
    waiting = [body]

    async def give() -> Message:
        return {"type": "http.request", "body": waiting.pop()} if waiting else await receive()

    return give


def _plain(body: bytes) -> bool:
    try:
        data = json.loads(body)["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(data, list) and all(one is None or isinstance(one, (str, int, float)) for one in data)


def serve(
    workbench: Workbench,
    *,
    host: str | None = None,
    port: int | None = None,
    max_upload_mb: float = 10,
    wait: bool = True,
) -> gr.Blocks:
    """Puts the page on a port. Nothing leaves the machine, and no upload is written to disk.

    Args:
        workbench: the model and its erasures.
        host: the address to listen at; by default the loopback, and in a Hugging Face Space everywhere.
        port: by default the first free one from 7860 on.
        max_upload_mb: a picture with more megabytes (of 10^6 bytes) is refused.
        wait: until it is interrupted.

    Returns:
        The page; `local_url` is where it is, `close()` ends it.

    Raises:
        ValueError: `max_upload_mb` is not above 0.
        OSError: the port is taken.
    """
    host = host or (EVERYWHERE if "SPACE_ID" in os.environ else LOOPBACK)
    page = build_page(workbench, max_upload_mb=max_upload_mb)
    # a data URL has four characters for three bytes
    middleware = [Middleware(Guard, max_body=int(max_upload_mb * MEGABYTE) * 4 // 3 + _BESIDES)]
    if _loops_back(host):
        # a name of somebody else's that points to this machine is no way in
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]))
    options: dict[str, Any] = {
        "theme": THEME,
        "css": CSS,
        "share": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "num_workers": 0,
        "enable_monitoring": False,
        "run_history": False,
        "state_session_capacity": 64,
        "footer_links": [],
        "quiet": True,
    }
    page.queue(api_open=False).launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        app_kwargs={"middleware": middleware},
        **options,
    )
    if wait:
        page.block_thread()
    return page


def _loops_back(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
