"""An S3 that takes uploads and keeps nothing, for exports larger than the emulator's memory.

`python -m tests.benchmarks.discarding_s3` prints its port and ends when its standard input does.
"""

import http.server
import sys
import threading
import urllib.parse

_BLOCK = bytearray(1 << 20)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def handle_expect_100(self) -> bool:
        answered = super().handle_expect_100()
        # The client waits for this before it sends the body.
        self.wfile.flush()
        return answered

    def do_PUT(self) -> None:
        self._swallow()
        self._answer(200, b"", ETag='"discarded"')

    def do_POST(self) -> None:
        self._swallow()
        query = urllib.parse.parse_qs(
            urllib.parse.urlsplit(self.path).query, keep_blank_values=True
        )
        root = "InitiateMultipartUploadResult" if "uploads" in query else "CompleteMultipartUpload"
        self._answer(
            200,
            f"<{root}><Bucket>b</Bucket><Key>k</Key><UploadId>upload</UploadId>"
            f"<ETag>&quot;discarded&quot;</ETag></{root}>".encode(),
        )

    def do_DELETE(self) -> None:
        self._answer(204, b"")

    def _swallow(self) -> None:
        left = int(self.headers.get("Content-Length") or 0)
        view = memoryview(_BLOCK)
        while left > 0:
            got = self.rfile.readinto(view[: min(left, len(_BLOCK))])  # type: ignore[attr-defined]
            if not got:
                return
            left -= got

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
