"""Clients that submit jobs over HTTP; a process of its own, so that both sides meet the same.

Reads {"url", "key", "clients", "requests", "body"} from standard input and prints
{"seconds", "latencies"}; raises on an answer that is not 202. The standard library's client, with
one kept connection a client, costs little enough not to be what is measured.
"""

import http.client
import itertools
import json
import sys
import threading
import time
import urllib.parse
import uuid
from typing import Any


def main() -> None:
    given = json.load(sys.stdin)
    latencies: list[list[float]] = [[] for _ in range(given["clients"])]
    failures: list[BaseException] = []
    start = threading.Barrier(given["clients"] + 1)

    def client(number: int) -> None:
        try:
            _submit(given, latencies[number], start)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(given["clients"])]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    json.dump({"seconds": seconds, "latencies": [*itertools.chain(*latencies)]}, sys.stdout)


def _submit(given: dict[str, Any], latencies: list[float], start: threading.Barrier) -> None:
    address = urllib.parse.urlsplit(given["url"])
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    body = json.dumps(given["body"])
    connection.connect()
    start.wait()
    for _ in range(given["requests"] // given["clients"]):
        headers = {
            "x-api-key": given["key"],
            "content-type": "application/json",
            "idempotency-key": str(uuid.uuid4()),
        }
        began = time.perf_counter()
        connection.request("POST", address.path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        latencies.append(time.perf_counter() - began)
        if answer.status != 202:
            raise RuntimeError(f"{given['url']} answered {answer.status}: {said[:500]!r}")
    connection.close()


if __name__ == "__main__":
    main()
