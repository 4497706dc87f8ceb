"""Clients of the link that say back what they hear, without torch and without fedopt: gRPC and the frames alone.

    python bench/echo.py ADDRESS AUTHORITY < lines of "client node secret run library"

AUTHORITY is a PEM file. There is a stream for each line; the process ends with the last of them. As a
client that trains, one that echoes begins its answer when the whole message is there.
"""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
from pathlib import Path
from typing import Any

import grpc

FRAMES = Path(__file__).parents[1] / "fedopt" / "wire" / "link_pb2.py"
OPTIONS = [("grpc.max_receive_message_length", 2 << 20), ("grpc.use_local_subchannel_pool", 1)]


def frames() -> Any:
    """The generated code of link.proto, as a module of its own."""
    spec = importlib.util.spec_from_file_location("link_pb2", FRAMES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def echo(address: str, authority: bytes, pb: Any, line: str) -> None:
    """One client, until the server is done."""
    client, node, secret, run, library = line.split()
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    heard: dict[int, bytes] = {}
    part = 0
    hello = pb.Hello(
        version=1, library=library, run=run, client=int(client), node=node, secret=bytes.fromhex(secret)
    )  # fmt: skip
    outbox.put(pb.Frame(hello=hello).SerializeToString())
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority), OPTIONS) as channel:
        for raw in channel.stream_stream("/fedopt.v1.Link/Talk")(iter(outbox.get, None)):
            frame = pb.Frame.FromString(raw)
            kind = frame.WhichOneof("body")
            if kind == "welcome":
                part = frame.welcome.part
                outbox.put(pb.Frame(here=pb.Here()).SerializeToString())
            elif kind == "chunk":
                heard[frame.chunk.part] = frame.chunk.data
                if len(heard) == frame.chunk.parts:
                    message, number = b"".join(heard[i] for i in sorted(heard)), frame.chunk.exchange
                    heard.clear()
                    parts = max(1, -(-len(message) // part))
                    for i in range(parts):
                        data = message[i * part : (i + 1) * part]
                        chunk = pb.Chunk(exchange=number, part=i, parts=parts, data=data)
                        outbox.put(pb.Frame(chunk=chunk).SerializeToString())
            elif kind == "done":
                break
        outbox.put(None)


def main() -> None:
    """A thread for each client."""
    address, authority, pb = sys.argv[1], Path(sys.argv[2]).read_bytes(), frames()
    threads = [threading.Thread(target=echo, args=(address, authority, pb, line)) for line in sys.stdin if line.strip()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
