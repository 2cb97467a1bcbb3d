"""Many clients of one server that do as they please: nothing leaks, everything is accounted for.

THINWIRE_SOAK_SECONDS (default 4) and THINWIRE_SOAK_CLIENTS (default 24) make it longer and wider.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import socket
import threading
import time

import serve_support
import support
from serve_support import Server
from support import OPT

try:
    import grpc
except ImportError:
    grpc = None

SECONDS = float(os.environ.get("THINWIRE_SOAK_SECONDS", 4))
CLIENTS = int(os.environ.get("THINWIRE_SOAK_CLIENTS", 24))
GARBAGE = [b"", b"\0" * 64, b"GET", b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n{",
           b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)), b"\r\n" * 50,
           b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"A" * 20000,
           b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 3000]


@serve_support.needs_grpc
class SoakTest(support.TestCase):

    def setUp(self):
        super().setUp()
        ranks = 2 if support.MPIEXEC else 0
        self.server = Server(OPT, *(["--tp", ranks] if ranks else []), "--max-queue", 1024,
                             ranks=ranks)
        self.addCleanup(self.server.close)
        self.accepted = self.refused = 0
        self.lock = threading.Lock()
        self.failures = []

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.server.leader()}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def count(self, refused):
        with self.lock:
            if refused:
                self.refused += 1
            else:
                self.accepted += 1

    def stream(self, client, dice):
        """One call that ends well, is cancelled, is late, or is read slowly."""
        fate = dice.choice(["read", "cancel", "late", "slow"])
        scored = {"log_probs": True, "top_log_probs": 5} if dice.random() < 0.2 else {}
        call = client.stream(
            **scored,
            token_ids=[dice.randrange(4, 1000) for _ in range(dice.randrange(1, 40))],
            max_tokens=dice.randrange(1, 60), ignore_eos=True,
            timeout=dice.uniform(0.001, 0.2) if fate == "late" else support.TIMEOUT_S)
        try:
            for event in call:
                if fate == "cancel" and dice.random() < 0.3:
                    call.cancel()
                if fate == "slow":
                    time.sleep(0.02)
            self.count(False)
        except grpc.RpcError as error:
            code = error.code()
            if code not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED,
                            grpc.StatusCode.RESOURCE_EXHAUSTED):
                self.failures.append(error)
            self.count(code == grpc.StatusCode.RESOURCE_EXHAUSTED)

    def leave_http(self, dice):
        host, port = self.server.addresses["http"].split(":")
        body = json.dumps({"prompt": [5, dice.randrange(900)], "max_tokens": 300, "n": 2,
                           "ignore_eos": True, "stream": dice.random() < 0.5,
                           "logprobs": dice.choice([None, 3])})
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
                               f"{len(body)}\r\n\r\n{body}".encode())
            time.sleep(dice.uniform(0, 0.1))

    def send_garbage(self, dice):
        address = self.server.addresses[dice.choice(["http", "grpc", "admin"])]
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(dice.choice(GARBAGE))

    def client(self, seed, until):
        dice = random.Random(seed)
        client = serve_support.Inference(self.server.addresses["grpc"],
                                         options=[("grpc.use_local_subchannel_pool", 1)])
        try:
            while time.monotonic() < until:
                what = dice.random()
                if what < 0.75:
                    self.stream(client, dice)
                elif what < 0.9:
                    self.leave_http(dice)
                else:
                    self.send_garbage(dice)
        except Exception as error:
            self.failures.append(error)
        finally:
            client.close()

    def soak(self, seconds, seed):
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self.client, args=(seed + i, until))
                   for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(self.failures[:3], [])
        with self.server.control() as control:
            give_up = time.monotonic() + support.TIMEOUT_S
            while True:
                load = control.load()
                if not (load.running_requests or load.queued_requests or load.kv_pages_used):
                    return
                self.assertLess(time.monotonic(), give_up, load)
                time.sleep(0.05)

    def test_nothing_leaks_and_everything_is_accounted_for(self):
        self.soak(SECONDS / 2, 0)
        before = self.resident_bytes()
        self.soak(SECONDS / 2, 1000)
        grown = self.resident_bytes() - before
        # Allocators and thread stacks settle; what every request would leave behind does not.
        # Sanitizers keep what was freed for a while, and look for leaks themselves at the end.
        if not support.SANITIZERS:
            self.assertLess(grown, 48 << 20)
        _, metrics, _ = self.server.http("GET", "/metrics")
        ended = sum(int(n) for n in re.findall(r"requests_total\{[^}]*\} (\d+)", metrics))
        # Those of HTTP come on top; late calls may never have reached the server.
        self.assertGreater(ended, 0)
        first = sum(int(n) for n in re.findall(r"_e2e_seconds_count (\d+)", metrics))
        self.assertEqual(first, ended)
        answer = self.server.post("/v1/completions", prompt="a", max_tokens=3, ignore_eos=True)
        self.assertEqual(answer["usage"]["completion_tokens"], 3)
        print(f"{self.accepted} calls ended, {self.refused} refused, {ended} counted, resident "
              f"{before >> 20} MiB, grown by {grown >> 10} KiB")


if __name__ == "__main__":
    support.main()
