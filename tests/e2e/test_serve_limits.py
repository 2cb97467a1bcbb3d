"""What strangers may send to `thinwire serve`, and how much of it."""

import contextlib
import json
import re
import socket
import struct
import time
import unittest

import serve_support
import support
from serve_support import Server
from support import OPT

try:
    import grpc
except ImportError:
    grpc = None

MAX_BODY = 16 << 20


class HttpLimitsTest(support.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.server = Server(OPT)
        cls.addClassCleanup(cls.server.close)

    def connect(self):
        host, port = self.server.addresses["http"].split(":")
        return socket.create_connection((host, int(port)), timeout=support.TIMEOUT_S)

    def answer(self, *parts):
        """All that comes back until the server hangs up."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):
                for part in parts:
                    connection.sendall(part)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while data := connection.recv(65536):
                    answer += data
            return answer.decode()

    def test_a_flood_of_fields_is_cut_off(self):
        flood = b"GET /readyz HTTP/1.1\r\n" + b"X: y\r\n" * 30000
        self.assertTrue(self.answer(flood).startswith("HTTP/1.1 431"))
        endless = b"GET /" + b"a" * (1 << 20)
        self.assertTrue(self.answer(endless).startswith("HTTP/1.1 431"))
        # What fits is answered, also in pieces and two at a time.
        fits = b"GET /readyz HTTP/1.1\r\n" + b"X: y\r\n" * 300
        twice = self.answer(fits[:7], fits[7:], b"\r\nGET /livez HTTP/1.1\r\nConnection: close\r\n",
                            b"\r\n")
        self.assertEqual(twice.count("HTTP/1.1 200 OK"), 2, twice)

    def test_a_body_beyond_the_limit_is_refused(self):
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
        answer = self.answer(f"{head}{MAX_BODY + 1}\r\nConnection: close\r\n\r\n".encode(),
                             b" " * (MAX_BODY + 1))
        self.assertTrue(answer.startswith("HTTP/1.1 413"), answer[:200])
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        body += b" " * (MAX_BODY - len(body))
        status, text, _ = self.server.http("POST", "/v1/completions", body)
        self.assertEqual(status, 200, text[:200])

    def test_what_was_not_taken_of_a_request_is_no_request(self):
        inner = b"GET /livez HTTP/1.1\r\nHost: inner\r\n\r\n"
        chunked = b"%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n"
        post = b"POST /v1/completions HTTP/1.1\r\n"
        for head, body in ((b"GET /version HTTP/1.1\r\nContent-Length: %d\r\n", inner),
                           (b"GET /version HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", chunked),
                           (b"OPTIONS / HTTP/1.1\r\nContent-Length: %d\r\n", inner),
                           (b"GET /version HTTP/1.1\r\nContent-Length: %d\n", inner),
                           (b"GET /version HTTP/1.1\r\nX: " + b"y" * 9000 + b"\r\n", inner),
                           (post + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
                            chunked),
                           (post + b"X: " + b"y" * 9000 + b"\r\nContent-Length: %d\r\n", inner)):
            head = head % len(body) if b"%d" in head else head
            answer = self.answer(head + b"\r\n" + body + inner)
            self.assertEqual(answer.count("HTTP/1.1 "), 1, (head[:80], answer))
        # Two that are taken whole, each with its answer.
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        twice = self.answer(post + b"Content-Length: %d\r\n\r\n" % len(body) + body + inner[:-2] +
                            b"Connection: close\r\n\r\n")
        self.assertEqual(twice.count("HTTP/1.1 200 OK"), 2, twice)


class RatesTest(support.TestCase):

    def test_each_client_has_its_rate_and_options_come_from_a_file(self):
        config = self.write("serve.toml", "rate-limit = 0.001  # one in a quarter of an hour\n"
                            "rate-burst = 2\nclient-header = 'X-Tenant'\nlog-level = 'error'\n")
        server = Server(OPT, "--config", config)
        self.addCleanup(server.close)
        body = {"prompt": "a", "max_tokens": 1}
        post = lambda tenant: server.http("POST", "/v1/completions", body, {"X-Tenant": tenant})
        self.assertEqual([post(tenant)[0] for tenant in "abaab"], [200, 200, 200, 429, 200])
        status, text, headers = post("b")
        self.assertEqual(status, 429)
        self.assertIn("too many requests", text)
        self.assertGreater(int(headers["Retry-After"]), 1)
        body["n"] = 2
        self.assertEqual([post("c")[0], post("c")[0]], [200, 429])
        _, metrics, _ = server.http("GET", "/metrics")
        self.assertIn('thinwire_rejections_total{reason="resource_exhausted"} 3', metrics)

    def test_what_is_wrong_in_a_file_is_named(self):
        for text, found in (("max-wait = none\n", "--max-wait"), ("tp-size = 2\n", "'tp-size'"),
                            ("[run]\nprompt = 'a'\n", "[run]"), ("config = 'x'\n", "'config'"),
                            ("max-queue = 9\nlog-level = 'error'\nmax-queue = 8\n", "'max-queue'"),
                            ("client-header = 'a#b'\n", "line 1")):
            config = self.write("wrong.toml", text)
            self.fail_alike(["serve", "--model", OPT, "--config", config], 2, found, ranks=False)
        self.fail_alike(["serve", "--model", OPT, "--config", "/no/such.toml"], 2, "/no/such.toml",
                        ranks=False)


class PrefixTest(support.TestCase):

    def test_who_begins_alike_is_not_computed_again(self):
        server = Server(OPT, "--wire", "exact")
        self.addCleanup(server.close)
        prompt = [5 + i * 11 % 900 for i in range(100)]

        def answer(**kwargs):
            body = server.post("/v1/completions", prompt=prompt, max_tokens=8, temperature=0,
                               ignore_eos=True, **kwargs)
            _, metrics, _ = server.http("GET", "/metrics")
            reused = re.search(r"^thinwire_prefix_cache_tokens_total (\d+)", metrics, re.M)
            return body["choices"][0]["token_ids"], int(reused[1])

        first, none = answer()
        self.assertEqual(none, 0)
        self.assertEqual(answer(), (first, 96))
        self.assertEqual(answer(cache_salt="a tenant"), (first, 96))
        self.assertEqual(answer(cache_salt="a tenant"), (first, 192))


@serve_support.needs_grpc
class GrpcLimitsTest(support.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.server = Server(OPT)
        cls.addClassCleanup(cls.server.close)

    def code_of(self, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        return caught.exception.code()

    def test_a_message_beyond_the_limit_is_refused(self):
        client = serve_support.Inference(self.server.addresses["grpc"],
                                         options=[("grpc.max_send_message_length", -1)])
        with contextlib.closing(client):
            too_long = lambda: client.call("Tokenize", text="a" * (MAX_BODY + 100))
            self.assertEqual(self.code_of(too_long), grpc.StatusCode.RESOURCE_EXHAUSTED)
            self.assertEqual(len(client.call("Tokenize", text="a").token_ids), 2)

    def test_a_flood_of_metadata_is_refused(self):
        with self.server.inference() as client:
            call, message = client.method(client.SERVICE, "Tokenize")
            flood = [(f"x-{i}", "y" * 100) for i in range(400)]
            code = self.code_of(lambda: call(message(text="a"), metadata=flood, timeout=30))
            # Or it hangs up.
            self.assertIn(code, (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE))
        with self.server.inference() as client:
            self.assertTrue(client.call("Tokenize", text="a").token_ids)

    def test_streams_that_are_reset_at_once_leave_nothing(self):
        """What HTTP/2's rapid reset does: open, cancel, and again, on one connection."""
        host, port = self.server.addresses["grpc"].split(":")

        def frame(kind, flags, stream, payload=b""):
            return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(
                ">I", stream) + payload

        def literal(name, value):
            return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

        headers = b"".join(literal(*pair) for pair in (
            (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"),
            (b":path", b"/thinwire.v1.Inference/GenerateStream"), (b"te", b"trailers"),
            (b"content-type", b"application/grpc")))
        with self.server.inference() as client:
            request = client.request(token_ids=[5, 6], max_tokens=400, ignore_eos=True)
        body = request.SerializeToString()
        body = b"\0" + struct.pack(">I", len(body)) + body
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            with contextlib.suppress(OSError):  # the server may have had enough
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
                for stream in range(1, 4001, 2):
                    connection.sendall(frame(1, 4, stream, headers) + frame(0, 1, stream, body) +
                                       frame(3, 0, stream, struct.pack(">I", 8)))
        with self.server.control() as control, self.server.inference() as client:
            self.assertEqual(
                len(client.generate(prompt="a", max_tokens=3, ignore_eos=True).token_ids), 3)
            give_up = time.monotonic() + support.TIMEOUT_S
            while True:
                load = control.load()
                if not (load.running_requests or load.queued_requests or load.kv_pages_used):
                    break
                self.assertLess(time.monotonic(), give_up, load)
                time.sleep(0.05)


if __name__ == "__main__":
    support.main()
