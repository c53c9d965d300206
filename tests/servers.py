"""Servers: S3 by moto, a real one that the environment names, and web servers with and without byte ranges."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

BUCKET = "team"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "testtest1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 server with the bucket ``team``; gives its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        _make_bucket(f"http://{host}:{port}")
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _make_bucket(address: str) -> None:
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "testtest1", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=BUCKET)


@contextlib.contextmanager
def real_s3_bucket(address: str) -> Iterator[str]:
    """A bucket of its own on the server at an address, whose keys are in the environment; gives its URL.

    Raises:
        OSError: the server does not answer.
    """
    import boto3
    from botocore.exceptions import BotoCoreError

    client, bucket = boto3.client("s3", endpoint_url=address), f"wherewhen-{os.getpid()}-{time.time_ns()}"
    try:
        client.create_bucket(Bucket=bucket)
    except BotoCoreError as error:
        raise OSError(str(error)) from None
    try:
        yield f"s3://{bucket}"
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for found in page.get("Contents", ()):
                client.delete_object(Bucket=bucket, Key=found["Key"])
        client.delete_bucket(Bucket=bucket)


class Plain(SimpleHTTPRequestHandler):
    """A folder, read only, whole files only; paths with ``broken`` in them fail."""

    def send_head(self) -> BytesIO | BinaryIO | None:
        if "broken" in self.path:
            self.send_error(503, "out of order")
            return None
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        pass


class Ranged(Plain):
    """The same with byte ranges, as web servers for real have."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> BytesIO | BinaryIO | None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or "broken" in self.path or not path.is_file():
            return super().send_head()
        data = path.read_bytes()
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        return BytesIO(data[start:stop])


class Unreliable(Ranged):
    """The same, but the first two requests for anything find the connection broken, and all for ``dead``."""

    asked: ClassVar[Counter[tuple[str, str]]] = Counter()

    def send_head(self) -> BytesIO | BinaryIO | None:
        self.asked[self.command, self.path] += 1
        if self.asked[self.command, self.path] < 3 or "dead" in self.path:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # with a reset
            self.close_connection = True
            self.connection.close()
            return None
        return super().send_head()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # socketserver's 5 lets connections wait that come at once
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is nothing to print."""


@contextlib.contextmanager
def web_server(folder: Path, handler: type[Plain] = Ranged) -> Iterator[str]:
    """Serve a folder; gives its address."""
    server = _Server(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
