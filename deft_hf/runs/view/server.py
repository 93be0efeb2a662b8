"""The page of a gallery, served to this machine alone."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from deft_hf.runs.view.gallery import OWN, Gallery
from deft_hf.utils.errors import UserError

_LARGEST = 200 * 2**20  # bytes of a picture that is dropped in
_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def view(run: str | Path, port: int = 8008, device: str | None = None, browser: bool = True) -> None:
    """Opens a page to leaf through a finished run, until it is interrupted (Ctrl-C).

    Args:
        run (`str` or `Path`):
            The output folder of a training run.
        port (`int`, *optional*, defaults to `8008`):
            Port on this machine; 0 takes one that is free.
        device (`str`, *optional*):
            Such as `cpu` or `cuda:1`; by default an accelerator where there is one.
        browser (`bool`, *optional*, defaults to `True`):
            Open the page in a browser.

    Raises:
        UserError: The folder holds no finished run, its data cannot be found, or the port is taken.

    Example:

    ```python
    from deft_hf.runs.view.server import view

    view("outputs/quickstart")
    ```
    """
    with serve(Gallery(run, device), port) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")


def serve(gallery: Gallery, port: int = 0) -> ThreadingHTTPServer:
    """A server of the page, not yet running; other machines cannot reach it.

    Args:
        gallery (`Gallery`):
            What to show.
        port (`int`, *optional*, defaults to `0`):
            Port on this machine; 0 takes one that is free.

    Raises:
        UserError: The port is taken.
    """
    handler = type("Handler", (_Handler,), {"gallery": gallery})
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UserError(f"port: {port} cannot be used ({error.strerror}); choose another with --port") from error


class _Handler(BaseHTTPRequestHandler):
    gallery: Gallery

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        asked = dict(parse_qsl(address.query))
        if not self._from_here():
            self._send(403, "text/plain", b"only from this machine")
        elif address.path == "/":
            page = files("deft_hf.runs.view").joinpath("page.html").read_bytes()
            self._send(200, "text/html; charset=utf-8", page)
        else:
            self._answer(address.path, asked)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        # A page of another origin cannot set this header without being asked first, which it is not.
        if not self._from_here() or self.path != "/own" or self.headers.get("X-View") != "own":
            self._send(403, "text/plain", b"only from this page")
        elif not 0 < length <= _LARGEST:
            self._send(413, "text/plain", b"expected a picture of at most 200 MB")
        else:
            self._try(lambda: self._json({"shelf": OWN, "index": self.gallery.add(self.rfile.read(length))}))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not printed."""

    def _from_here(self) -> bool:
        # The name that the browser asked for: another one would be a page elsewhere whose name was led here.
        return (self.headers.get("Host") or "").rpartition(":")[0] in _HOSTS

    def _answer(self, path: str, asked: Mapping[str, str]) -> None:
        gallery = self.gallery

        def picture() -> None:
            show: Any = asked.get("show", "classes")
            self._send(200, "image/png", gallery.picture(asked["shelf"], int(asked["index"]), asked["what"], show))

        answers = {
            "/contents": lambda: self._json(gallery.contents()),
            "/image": lambda: self._json(gallery.describe(asked["shelf"], int(asked["index"]))),
            "/ranked": lambda: self._json(gallery.ranked(asked["shelf"])),
            "/picture": picture,
        }
        if path in answers:
            self._try(answers[path])
        else:
            self._send(404, "text/plain", b"no such page")

    def _try(self, answer: Any) -> None:
        try:
            answer()
        except (KeyError, ValueError, IndexError) as error:  # of UserError too
            said = str(error) if isinstance(error, UserError) else f"not understood: {error}"
            self._send(400, "text/plain; charset=utf-8", said.encode())

    def _json(self, found: Any) -> None:
        self._send(200, "application/json", json.dumps(found).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'; img-src 'self' blob: data:")
        self.end_headers()
        self.wfile.write(content)
