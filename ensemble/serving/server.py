"""Server process of the HTTP service: its socket and an orderly end.

SIGTERM and Ctrl-C stop new connections; requests that were taken are answered first.
"""

from __future__ import annotations

import ipaddress
import logging
import socket

import uvicorn

from ensemble.serving.api_key import KEY
from ensemble.serving.connections import connections_that_fit, limited_protocol
from ensemble.serving.judge import Judge
from ensemble.serving.request_limits import Limits
from ensemble.serving.service import Service, build_app
from oof.common import progress
from oof.common.errors import UserError

logger = logging.getLogger(__name__)

HEADER_BYTES = 16 << 10  # of one request's line and headers
BACKLOG = 128  # connections that the system accepts before the service has seen them


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 = any free one.

    Raises:
        UserError: the address is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; choose another, --port 0 takes a free one") from error


def build_server(judge: Judge, name: str, key: str, limits: Limits) -> uvicorn.Server:
    """Return the server of a student; its ``run(sockets=[...])`` ends when every request that was taken is answered.

    Args:
        judge: the student.
        name: of the model, in answers.
        key: that clients must send; "" = none.
        limits: of the requests.
    """
    config = uvicorn.Config(
        build_app(Service(judge, name, limits), key),
        http=limited_protocol(connections_that_fit(limits.connections), limits.read_seconds),
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=round(limits.seconds + limits.read_seconds),
    )
    return uvicorn.Server(config)


def serve(judge: Judge, name: str, sock: socket.socket, key: str, limits: Limits) -> None:
    """Serve a student on a listening socket until SIGTERM or Ctrl-C, which are raised again at the end.

    Arguments are those of :func:`build_server`.
    """
    progress.mute()  # each pass of the model would show a bar
    host, port = sock.getsockname()[:2]
    if not key and not ipaddress.ip_address(host).is_loopback:
        logger.warning("serve: %s is open to other machines, without a key; set %s", host, KEY)
    address = f"[{host}]" if ":" in host else host
    print(f"serve: http://{address}:{port} (page; /docs, /health, /metrics); Ctrl-C ends it", flush=True)
    build_server(judge, name, key, limits).run(sockets=[sock])
