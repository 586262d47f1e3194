"""``GET /healthz`` and ``GET /metrics``, answered by a thread of their own even when the service hangs."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from esper_runtime.contracts import InputError

TEXT, METRICS = "text/plain; charset=utf-8", "text/plain; version=0.0.4; charset=utf-8"


def listen_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` as a pair; port 0 takes a free one.

    Raises:
        InputError: it is not of this form.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"{text!r} is no HOST:PORT to listen at, e.g. 127.0.0.1:9464")
    return host.strip("[]"), int(port)


class StatusServer:
    """Answers from construction until the end of its ``with`` block.

    Args:
        host: to listen at.
        port: 0 takes a free one.
        problem: says what is wrong with the service, None where nothing is.
        metrics: gives the exposition text.

    Raises:
        InputError: the address cannot be used.
    """

    def __init__(
        self, host: str, port: int, problem: Callable[[], str | None], metrics: Callable[[], bytes]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, METRICS, metrics())
                elif path == "/healthz":
                    wrong = problem()
                    self._answer(503 if wrong else 200, TEXT, f"{wrong or 'ok'}\n".encode())
                else:
                    self._answer(404, TEXT, b"there are /healthz and /metrics\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are no news."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise InputError(
                f"cannot listen at {host}:{port} ({error.strerror or error}); give another --listen HOST:PORT"
            ) from error
        self._server.daemon_threads = True
        self.host, self.port = host, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
