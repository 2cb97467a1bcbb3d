"""`thinwire serve` with clients that know only its addresses: gRPC through reflection, HTTP."""

import contextlib
import json
import math
import os
import re
import signal
import socket
import threading
import time
import unittest

import serve_support
import support
from serve_support import NOT_SERVING, SERVING, Server
from support import OPT

try:
    import grpc
except ImportError:
    grpc = None

STORY = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
LONG = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}


def post_raw(server, body, receive_bytes=None):
    """A connection whose answer is not read yet."""
    connection = socket.socket()
    connection.settimeout(support.TIMEOUT_S)
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    host, port = server.addresses["http"].split(":")
    connection.connect((host, int(port)))
    body = json.dumps(body)
    connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
                       f"{len(body)}\r\n\r\n{body}".encode())
    return connection


def prompts():
    lines = [
        {"prompt": "It is a truth universally acknowledged"},
        {"prompt": "Mr.", "temperature": 0.8, "seed": 7},
        {"prompt": STORY, "max_tokens": 40},
        {"prompt": STORY[:40], "temperature": 0.7, "top_p": 0.9, "seed": 3},
        {"prompt": "She was", "stop": [" the", "."]},
        {"token_ids": [5]},
        {"prompt": "Élan — ", "temperature": 1.0, "top_k": 20, "seed": 11},
    ]
    return [{"max_tokens": 24, **line} for line in lines]


class ServeTestCase(support.TestCase):

    RANKS = 2
    FLAGS = ()

    @classmethod
    def setUpClass(cls):
        if not grpc:
            raise unittest.SkipTest("no Python grpcio here (package python3-grpcio)")
        ranks = cls.RANKS if support.MPIEXEC else 0
        flags = ["--tp", ranks] if ranks else []
        cls.server = Server(OPT, *flags, *cls.FLAGS, ranks=ranks)
        cls.addClassCleanup(cls.server.close)

    def setUp(self):
        super().setUp()
        self.inference = serve_support.Inference(self.server.addresses["grpc"])
        self.addCleanup(self.inference.close)
        self.control = serve_support.Control(self.server.addresses["admin"])
        self.addCleanup(self.control.close)

    def expect_code(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception)
        return caught.exception

    def expect_idle(self, within=30 * support.PATIENCE):
        """Nothing runs, and all KV pages are free."""
        give_up = time.monotonic() + within
        while True:
            load = self.control.load()
            if not (load.running_requests or load.queued_requests or load.kv_pages_used):
                return
            self.assertLess(time.monotonic(), give_up, load)
            time.sleep(0.02)


class AnswersTest(ServeTestCase):

    def test_answers_are_those_of_run(self):
        lines = prompts()
        file = self.write("prompts.jsonl", lines)
        flags = ["--tp", 2] if support.MPIEXEC else []
        expected = self.succeed(["run", "--model", OPT, "--prompts", file, "--json", "--threads", 1,
                                 *flags], ranks=2 if support.MPIEXEC else 0).lines
        # All at once, over every way in.
        answers = []

        def ask(way, i):
            answers.append((way, i, way(lines[i])))

        def unary(line):
            reply = self.inference.generate(**line)
            return list(reply.token_ids), reply.text

        def stream(line):
            ids, text, last = [], "", None
            for number, event in enumerate(self.inference.stream(**line)):
                self.assertEqual(event.sequence_number, number)
                ids += event.token_ids
                text += event.text
                last = event
            self.assertTrue(last.HasField("completion"))
            self.assertEqual(last.completion.usage.completion_tokens, len(ids))
            return ids, text

        def http(line):
            choice, = self.server.post("/v1/completions", **self.openai(line))["choices"]
            return choice["token_ids"], choice["text"]

        def http_stream(line):
            ids, text = [], ""
            for event in self.server.post_stream("/v1/completions", **self.openai(line)):
                ids += event["choices"][0]["token_ids"]
                text += event["choices"][0]["text"]
            return ids, text

        threads = [threading.Thread(target=ask, args=(way, i))
                   for way in (unary, stream, http, http_stream) for i in range(len(lines))
                   for _ in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for way, i, answer in answers:
            self.assertEqual(answer, (expected[i]["token_ids"], expected[i]["text"]),
                             (way.__name__, lines[i]))
        self.assertEqual(len(answers), len(threads))
        batch = {}
        for event in self.inference.batch([(str(i), self.inference.request(**line))
                                           for i, line in enumerate(lines)]):
            self.assertFalse(event.HasField("error"), event)
            batch.setdefault(event.tag, []).extend(event.event.token_ids)
        self.assertEqual(batch, {str(i): line["token_ids"] for i, line in enumerate(expected)})
        self.expect_idle()

    @staticmethod
    def openai(line):
        body = {"temperature": 0.0, **line}
        if "token_ids" in body:
            body["prompt"] = body.pop("token_ids")
        return body

    def test_reflection_health_and_model_are_there(self):
        self.assertIn("thinwire.v1.Inference", self.inference.services())
        self.assertIn("thinwire.v1.Control", self.control.services())
        self.assertNotIn("thinwire.v1.Control", self.inference.services())
        for client in (self.inference, self.control):
            self.assertEqual(client.health(), SERVING)
            self.assertEqual(client.health("thinwire.v1.Inference"), SERVING)
        info = self.inference.call("GetModelInfo")
        self.assertEqual((info.model, info.max_context_tokens, info.vocab_size),
                         ("opt-nano", 512, 1024))
        ids = self.inference.call("Tokenize", text="The family").token_ids
        text = self.inference.call("Detokenize", token_ids=ids).text
        self.assertEqual(text, "The family")

    def test_administrators_see_ranks_and_load(self):
        info = self.control.call("GetServerInfo")
        self.assertEqual(len(info.ranks), self.RANKS if support.MPIEXEC else 1)
        self.assertEqual([rank.tp_rank for rank in info.ranks], list(range(len(info.ranks))))
        self.assertTrue(all(rank.memory.weight_bytes > 0 for rank in info.ranks))
        events = self.control.call("WatchLoad", interval_ms=10)
        self.assertEqual([next(events).load.max_running_requests for _ in range(3)], [64] * 3)
        events.cancel()
        self.assertTrue(all(rank.up for rank in self.control.call("RankStatus").ranks))

    def test_wrong_requests_are_refused_by_name(self):
        wrong = grpc.StatusCode.INVALID_ARGUMENT
        generate = self.inference.generate
        self.expect_code(wrong, lambda: generate(token_ids=[]))
        self.expect_code(wrong, lambda: generate(token_ids=[4096]))
        self.expect_code(wrong, lambda: generate(prompt="a " * 2000))
        self.expect_code(wrong, lambda: generate(prompt="a", temperature=-1.0))
        self.expect_code(wrong, lambda: generate(prompt="a", max_tokens=0))
        self.expect_code(wrong, lambda: list(self.inference.stream(prompt="a", priority=1000)))
        self.expect_code(wrong, lambda: self.inference.call("Generate"))
        self.expect_code(grpc.StatusCode.NOT_FOUND, lambda: generate(prompt="a", model="other"))
        self.expect_code(wrong, lambda: list(self.control.call("WatchLoad", interval_ms=1)))
        self.expect_code(grpc.StatusCode.RESOURCE_EXHAUSTED,
                         lambda: generate(prompt="a" * (17 << 20)))
        for path, body, status in [
                ("/v1/completions", "{", 400), ("/v1/completions", "[]", 400),
                ("/v1/completions", {"prompt": "a", "model": "other"}, 404),
                ("/v1/completions", {"prompt": "a", "logit_bias": {"5": 1}}, 400),
                ("/v1/chat/completions", {"messages": "a"}, 400),
                ("/v1/chat/completions", {"messages": []}, 400), ("/v1/nothing", {}, 404),
                ("/v1/completions", "[" * 200000, 400),
                ("/v1/completions", "x" * (17 << 20), 413)]:
            found, text, _ = self.server.http("POST", path, body)
            self.assertEqual(found, status, text)
            error = json.loads(text)["error"]
            self.assertTrue(error["message"])
            self.assertIn(error["code"], (status, "model_not_found"))

    def test_chat_streams_like_it_answers(self):
        body = {"model": "opt-nano", "messages": [{"role": "user", "content": "Who is he?"}],
                "max_tokens": 12, "seed": 5}
        answer = self.server.post("/v1/chat/completions", **body)
        self.assertEqual(answer["object"], "chat.completion")
        *events, usage = self.server.post_stream("/v1/chat/completions", **body,
                                                 stream_options={"include_usage": True})
        self.assertEqual(events[0]["choices"][0]["delta"]["role"], "assistant")
        self.assertEqual("".join(e["choices"][0]["delta"].get("content", "") for e in events),
                         answer["choices"][0]["message"]["content"])
        self.assertEqual(events[-1]["choices"][0]["finish_reason"],
                         answer["choices"][0]["finish_reason"])
        self.assertEqual(usage["usage"], answer["usage"])

    def test_choices_and_log_probabilities(self):
        answer = self.server.post("/v1/completions", prompt=["He", "She"], n=2, max_tokens=5,
                                  seed=1, logprobs=0, ignore_eos=True)
        self.assertEqual([choice["index"] for choice in answer["choices"]], [0, 1, 2, 3])
        for choice in answer["choices"]:
            self.assertEqual(len(choice["logprobs"]["token_logprobs"]), 5)
        self.assertEqual(answer["usage"]["completion_tokens"], 20)
        line = {"prompt": "She", "max_tokens": 40, "ignore_eos": True}
        completion = self.inference.generate(**line, log_probs=True, top_log_probs=20).completion
        choice, = self.server.post("/v1/completions", **line, temperature=0,
                                   logprobs=20)["choices"]
        for i, top in enumerate(completion.top_log_probs):
            # Greedy: the chosen token is the first.
            self.assertEqual((top.token_ids[0], top.log_probs[0]),
                             (choice["token_ids"][i], completion.log_probs[i]))
            self.assertEqual(list(top.log_probs), sorted(top.log_probs, reverse=True))
            self.assertLess(sum(map(math.exp, top.log_probs)), 1)
            named = set(choice["logprobs"]["top_logprobs"][i].values())
            self.assertEqual(max(named), top.log_probs[0])
            self.assertLessEqual(named, set(top.log_probs))
        self.assertEqual(len(completion.top_log_probs), 40)

    def test_probes_metrics_and_page(self):
        self.server.post("/v1/completions", prompt="a", max_tokens=2)
        self.assertEqual(self.server.http("GET", "/livez")[0], 200)
        self.assertEqual(self.server.http("GET", "/readyz")[:2], (200, "ready\n"))
        _, metrics, _ = self.server.http("GET", "/metrics")
        for name in ("thinwire_requests_running 0", 'thinwire_state{state="ready"} 1',
                     'thinwire_requests_total{finish_reason="length"}',
                     "thinwire_ttft_seconds_bucket", "thinwire_wire_payload_bytes_total"):
            self.assertIn(name, metrics)
        page = self.server.http("GET", "/")[1]
        self.assertIn("<title>thinwire</title>", page)
        self.assertIn("$ = id => document", page)  # no formatter took it for C++
        status = json.loads(self.server.http("GET", "/status")[1])
        self.assertEqual(status["state"], "ready")
        models = json.loads(self.server.http("GET", "/v1/models")[1])
        self.assertEqual(models["data"][0]["id"], "opt-nano")


class LeavingTest(ServeTestCase):
    """Clients that leave, deadlines, a full queue."""

    FLAGS = ("--max-seqs", "2", "--max-queue", "2")

    def test_a_cancelled_stream_frees_its_pages(self):
        stream = self.inference.stream(**LONG)
        next(stream)
        stream.cancel()
        self.expect_idle()

    def test_a_closed_connection_frees_its_pages(self):
        # What nobody reads, TLS's farewell for one, must not hide the end.
        for streams, unread in ((True, b""), (False, b""), (True, b"x"), (False, b"x")):
            with self.subTest(streams=streams, unread=unread):
                before = self.num_cancelled()
                for _ in range(20):  # a fast machine may be done before it looks
                    with post_raw(self.server, {**LONG, "n": 2, "stream": streams}) as connection:
                        if streams:
                            connection.recv(1)
                        else:
                            time.sleep(0.02)
                        connection.sendall(unread)
                    self.expect_idle()
                    if self.num_cancelled() > before:
                        break
                else:
                    self.fail("the server did not notice once")

    def num_cancelled(self):
        metrics = self.server.http("GET", "/metrics")[1]
        found = re.search(r'requests_total\{finish_reason="cancelled"\} (\d+)', metrics)
        return int(found[1]) if found else 0

    def test_deadlines_end_calls(self):
        late = grpc.StatusCode.DEADLINE_EXCEEDED
        self.expect_code(late, lambda: list(self.inference.stream(timeout=0.01, **LONG)))
        status, text, _ = self.server.http("POST", "/v1/completions", LONG,
                                           {"X-Request-Timeout-Ms": "5"})
        self.assertEqual(status, 504, text)
        self.expect_idle()

    def test_a_full_queue_refuses_with_a_hint(self):
        streams = [self.inference.stream(**LONG) for _ in range(12)]
        codes, details = [], b""
        for stream in streams:
            try:
                list(stream)
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
                details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        self.assertEqual(set(codes), {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED})
        self.assertIn(b"google.rpc.RetryInfo", details)
        self.assertIn(b"retryable", details)

    def test_administrators_end_requests(self):
        # Clients that have looked up what they call, so that they are quick.
        self.inference.generate(prompt="a", max_tokens=1)
        self.control.call("Abort", request_id_prefix="none")
        for _ in range(50):  # a fast machine may be done before it is asked
            if self.is_ended_by_administrator():
                return
            self.expect_idle()
        self.fail("no request lived long enough to be ended")

    def is_ended_by_administrator(self):
        stream = self.inference.stream(request_id="mine", **LONG)
        next(stream)
        try:
            self.inference.generate(request_id="mine", prompt="a", max_tokens=1)
            return False
        except grpc.RpcError as error:
            self.assertEqual(error.code(), grpc.StatusCode.ALREADY_EXISTS, error)
        aborted = self.control.call("Abort", request_id_prefix="mi").aborted
        try:
            list(stream)
            return False
        except grpc.RpcError as error:
            self.assertEqual((aborted, error.code()), (1, grpc.StatusCode.CANCELLED), error)
        return True


class EndTest(support.TestCase):
    """How servers end."""

    def start(self, *flags, **kwargs):
        if not grpc:
            self.skipTest("no Python grpcio here (package python3-grpcio)")
        server = Server(OPT, *flags, **kwargs)
        self.addCleanup(server.close)
        return server

    def watch_stream(self, server):
        """Begins a long stream; a function that waits for its end, and returns its status."""
        inference = serve_support.Inference(server.addresses["grpc"])
        self.addCleanup(inference.close)
        stream = inference.stream(**LONG)
        tokens = list(next(stream).token_ids)
        result = []

        def read():
            try:
                for event in stream:
                    tokens.extend(event.token_ids)
                result.append((grpc.StatusCode.OK, None))
            except grpc.RpcError as error:
                result.append((error.code(), error))

        thread = threading.Thread(target=read)
        thread.start()

        def end():
            thread.join()
            return (*result[0], tokens)

        return end

    def test_a_drain_lets_requests_finish(self):
        server = self.start("--pid-file", self.folder / "pid")
        end = self.watch_stream(server)
        inference = serve_support.Inference(server.addresses["grpc"])
        self.addCleanup(inference.close)
        health = inference.watch_health("thinwire.v1.Inference")
        self.assertEqual(next(health), SERVING)
        os.kill(int((self.folder / "pid").read_text()), signal.SIGTERM)
        self.assertEqual(next(health), NOT_SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            inference.generate(prompt="a")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        code, error, tokens = end()
        self.assertEqual(code, grpc.StatusCode.OK, error)
        self.assertEqual(len(tokens), LONG["max_tokens"])
        result = server.running.wait()
        self.assertEqual(result.exit_code, 0, result)
        self.assertEqual([line["event"] for line in result.lines],
                         ["listening", "ready", "draining", "stopped"])

    def test_a_drain_lets_streams_over_http_be_read(self):
        server = self.start("--model-name", "m" * 4000)  # of which every event tells
        with post_raw(server, {**LONG, "n": 4, "stream": True}, receive_bytes=4096) as stream:
            answer = stream.recv(1)
            os.kill(server.leader(), signal.SIGTERM)
            server.event("stopped")
            while piece := stream.recv(1 << 16):
                answer += piece
        self.assertIn(b"data: [DONE]", answer, answer[-300:])
        self.assertTrue(answer.endswith(b"0\r\n\r\n"), answer[-300:])
        result = server.running.wait()
        self.assertEqual(result.exit_code, 0, result)

    def test_a_stalled_reader_over_http_does_not_spoil_a_drain(self):
        server = self.start("--model-name", "m" * 4000)
        with post_raw(server, {**LONG, "n": 4, "stream": True}, receive_bytes=4096) as stream:
            stream.recv(1)
            os.kill(server.leader(), signal.SIGTERM)
            result = server.running.wait()
        self.assertEqual(result.exit_code, 0, result)

    @support.needs_mpi
    def test_an_administrators_drain_has_a_bound(self):
        server = self.start("--tp", 2, ranks=2)
        end = self.watch_stream(server)
        with server.control() as control:
            states = [event.state for event in control.call("Drain", timeout_ms=0)]
        self.assertEqual(states[-1], 5)
        code, error, tokens = end()
        if len(tokens) < LONG["max_tokens"]:
            self.assertEqual(code, grpc.StatusCode.UNAVAILABLE, error)
        self.assertEqual(server.running.wait().exit_code, 0)

    @support.needs_mpi
    def test_a_lost_rank_ends_streams_and_the_job(self):
        for number, rank, busy in ((signal.SIGKILL, 1, True), (signal.SIGKILL, 0, True),
                                   (signal.SIGSTOP, 1, True), (signal.SIGSTOP, 1, False)):
            with self.subTest(signal=number, rank=rank, busy=busy):
                self.check_lost_rank(number, rank, busy)

    def check_lost_rank(self, number, rank, busy):
        server = self.start("--tp", 2, "--step-timeout", 2, ranks=2)
        end = self.watch_stream(server) if busy else None
        os.kill(server.running.rank_process(rank), number)
        start = time.monotonic()
        result = server.running.wait(start - server.running.start + support.TIMEOUT_S)
        bound = 5 if number == signal.SIGKILL else 10
        self.assertLess(time.monotonic() - start, bound * support.PATIENCE, result)
        self.assertNotEqual(result.exit_code, 0, result)
        if busy:
            code, error, tokens = end()
            if len(tokens) == LONG["max_tokens"]:
                return  # it was done before
            self.assertEqual(code, grpc.StatusCode.UNAVAILABLE, error)
            if rank != 0:
                details = dict(error.trailing_metadata())["grpc-status-details-bin"]
                self.assertIn(b"tokens_emitted", details)

    def test_what_is_wrong_ends_it_before_loading(self):
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        base = ["serve", "--model", OPT, "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        self.fail_alike([*base, "--http", address], 1, address)
        alone = {"ranks": False}
        self.fail_alike(["serve", "--model", OPT, "--grpc", address], 1, address, **alone)
        self.fail_alike([*base, "--http", "0.0.0.0:0"], 2, "--http 0.0.0.0:0", "--insecure")
        self.fail_alike([*base, "--http", "nowhere"], 2, "--http", "HOST:PORT", **alone)
        self.fail_alike([*base, "--tls-cert", "x"], 2, "--tls-key", **alone)
        self.fail_alike([*base, "--chat-template", "nope"], 1, "nope", "chatml", **alone)
        self.fail_alike(["serve", "--model", self.folder, "--grpc", "127.0.0.1:0"], 1,
                        "config.json", **alone)


if __name__ == "__main__":
    support.main()
