"""Compose files and a systemd unit, as text. They are read by `docker compose` and by docker-compose 1.28 alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

HOST = "fedopt-server"
"""The server's name on the network of a compose file."""

METRICS_PORT = 9464
"""Prometheus', on the server's machine alone."""

_SERVER = """\
  server:
    image: fedopt-server
    build: {{ context: {context}, dockerfile: docker/server.Dockerfile }}
    user: "{uid}:{uid}"
    init: true
    restart: unless-stopped
    command: ["serve", "/federation", "--metrics", "0.0.0.0:{metrics}"]
    ports: [{ports}]
    networks: {{ default: {{ aliases: [{aliases}] }} }}
    volumes: [{volumes}]
    stop_grace_period: 30s
    healthcheck:
      test: ["CMD", "fedopt-health", "https://localhost:{port}/health", "/federation/ca.pem"]
      interval: 10s
      timeout: 10s
      start_period: 60s
      retries: 6
"""

_CLIENT = """\
  client-{client}:
    image: {image}
    build: {build}
    user: "{uid}:{uid}"
    init: true
    restart: unless-stopped
    command: ["join", "/federation", "--hold"]
    volumes: [{volumes}]
    stop_grace_period: 15s
    healthcheck:
      test: ["CMD", "fedopt-health", "/federation/state/alive"]
      interval: 10s
      timeout: 10s
      start_period: 60s
      retries: 6
"""

_GPU = """\
    deploy:
      resources:
        reservations:
          devices: [{ driver: nvidia, count: 1, capabilities: [gpu] }]
"""

_CUDA = "https://download.pytorch.org/whl/cu130"


def everything(
    ports: Sequence[int],
    host: str,
    gpu: Mapping[int, bool],
    uid: int | str,
    data: str = "",
    *,
    folder: str = ".",
    context: str = "image",
) -> str:
    """The server and all clients on one machine.

    ports: of Flower, the link and the monitor; 0 is none. gpu: by client. data: folder on this machine, mounted at
    /data. folder, context: the federation's, and what images are built from, both seen from the compose file.
    """
    mounts = [f"{folder}/server:/federation", *([f"{data}:/data:ro"] if data else [])]
    named = host != "localhost" and not host.replace(".", "").isdigit() and ":" not in host
    aliases = list(dict.fromkeys([HOST, host])) if named else [HOST]
    server = _SERVER.format(
        uid=uid,
        port=ports[0],
        metrics=METRICS_PORT,
        ports=_listed([*(f"{port}:{port}" for port in ports if port), f"127.0.0.1:{METRICS_PORT}:{METRICS_PORT}"]),
        context=context,
        volumes=_listed(mounts),
        aliases=_listed(aliases),
    )
    parts = [_client(one, has, uid, f"{folder}/clients/{one}", data, context) for one, has in sorted(gpu.items())]
    return "services:\n" + server + "".join(parts)


def one_client(client: int, gpu: bool, uid: int | str) -> str:
    """One client on a machine of its own; run from its folder, with the image at hand."""
    start = '# FEDOPT_DATA names the folder with this client\'s data; then set data = "/data" in client.toml\n'
    return start + "services:\n" + _client(client, gpu, uid, ".", "${FEDOPT_DATA:-./state}", "")


def unit(client: int) -> str:
    """For systemd, without Docker: the folder lies in /etc/fedopt/client-N, and fedopt in /opt/fedopt."""
    return f"""\
[Unit]
Description=fedopt client {client}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/opt/fedopt/bin/fedopt deploy join /etc/fedopt/client-{client}
Restart=on-failure
RestartSec=5
# refused by the server: trying again changes nothing
RestartPreventExitStatus=4
User=fedopt
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""


def _client(client: int, gpu: bool, uid: int | str, folder: str, data: str, context: str) -> str:
    build = f"{{ context: {context}, dockerfile: docker/client.Dockerfile"
    if gpu:
        build += f", args: {{ TORCH_INDEX: {json.dumps(_CUDA)} }}"
    text = _CLIENT.format(
        client=client,
        image="fedopt-client-gpu" if gpu else "fedopt-client",
        build=build + " }",
        uid=uid,
        volumes=_listed([f"{folder}:/federation", *([f"{data}:/data:ro"] if data else [])]),
    )
    if not context:
        text = "".join(line for line in text.splitlines(True) if not line.lstrip().startswith("build:"))
    return text + (_GPU if gpu else "")


def _listed(words: list[str]) -> str:
    return ", ".join(json.dumps(word) for word in words)
