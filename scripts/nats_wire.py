"""As much of the NATS protocol as a test needs to see a job and to publish it once more: plain TCP, no authentication."""

from __future__ import annotations

import json
import socket
import urllib.parse

from services import PATIENCE, Failed


class Connection:
    """One connection to a nats-server."""

    def __init__(self, url: str):
        address = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=PATIENCE)
        self.input = self.socket.makefile("rb")
        self.line()  # INFO
        self.send(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"python","version":"0"}\r\nPING\r\n')
        while self.line() != b"PONG":
            pass

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line."""
        line = self.input.readline()
        if not line:
            raise Failed("the nats-server closed the connection")
        return line.rstrip(b"\r\n")

    def subscribe(self, subject: str) -> None:
        """All messages of a subject from now on: what is published after this returned is seen."""
        self.send(f"SUB {subject} 1\r\nPING\r\n".encode())
        while self.line() != b"PONG":
            pass

    def next(self) -> tuple[str, str, bytes, bytes]:
        """The next message: subject, where an answer goes, headers, body."""
        while True:
            words = self.line().split()
            if words and words[0] == b"PING":
                self.send(b"PONG\r\n")
            if not words or words[0] not in (b"MSG", b"HMSG"):
                continue
            sizes = 2 if words[0] == b"HMSG" else 1
            total = int(words[-1])
            header = int(words[-2]) if sizes == 2 else 0
            data = self.input.read(total + 2)[:total]
            reply = words[3] if len(words) == 4 + sizes else b""
            return words[1].decode(), reply.decode(), data[:header], data[header:]

    def publish(self, subject: str, header: bytes, body: bytes, reply: str = "") -> None:
        """A message with headers as they came."""
        to = f"{subject} {reply}".strip()
        command = f"HPUB {to} {len(header)} {len(header) + len(body)}" if header else f"PUB {to} {len(body)}"
        self.send(command.encode() + b"\r\n" + header + body + b"\r\n")

    def request(self, subject: str, body: dict) -> dict:
        """A question to JetStream, and its answer. For a connection that has subscribed to nothing else."""
        self.subscribe("_INBOX.test")
        self.publish(subject, b"", json.dumps(body).encode(), "_INBOX.test")
        answer = json.loads(self.next()[3])
        if "error" in answer:
            raise Failed(f"{subject}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the connection."""
        self.input.close()
        self.socket.close()
