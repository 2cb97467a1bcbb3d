"""Clients of `thinwire serve` that were not written for it: the `openai` package, curl, wrk."""

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
import time
import unittest

import support
from serve_support import Server
from support import OPT

CURL, WRK = shutil.which("curl"), shutil.which("wrk")
CHAT = {"model": "opt-nano", "messages": [{"role": "system", "content": "Be brief."},
                                          {"role": "user", "content": "Who is he?"}]}
TEXT = {"model": "opt-nano", "prompt": "The"}


class ClientTestCase(support.TestCase):
    FLAGS = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(OPT, *cls.FLAGS)
        cls.addClassCleanup(cls.server.close)
        cls.url = f"http://{cls.server.addresses['http']}/v1"


@unittest.skipUnless(importlib.util.find_spec("openai"),
                     "no Python package openai here; tests/run.sh gets it from PyPI")
class OpenAiTest(ClientTestCase):

    def setUp(self):
        import openai
        self.openai = openai
        self.client = openai.OpenAI(base_url=self.url, api_key="x", max_retries=0, timeout=60)
        self.addCleanup(self.client.close)
        self.chat = self.client.chat.completions.create
        self.complete = self.client.completions.create

    def test_models_are_listed(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["opt-nano"])

    def test_a_chat_streams_what_it_answers(self):
        answer = self.chat(**CHAT, max_tokens=12, seed=3)
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        chunks = list(self.chat(**CHAT, max_completion_tokens=12, seed=3, stream=True,
                                stream_options={"include_usage": True}))
        self.assertEqual(chunks[-1].usage, usage)
        self.assertEqual(chunks[-1].choices, [])
        choices = [chunk.choices[0] for chunk in chunks[:-1]]
        self.assertEqual("".join(choice.delta.content or "" for choice in choices),
                         answer.choices[0].message.content)
        self.assertEqual(choices[0].delta.role, "assistant")
        self.assertEqual([choice.finish_reason for choice in choices],
                         [None] * (len(choices) - 1) + [answer.choices[0].finish_reason])

    def test_a_stream_that_is_left_ends(self):
        with self.chat(**CHAT, max_tokens=400, stream=True,
                       extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
        give_up = time.monotonic() + support.TIMEOUT_S
        while json.loads(self.server.http("GET", "/status")[1])["load"]["running"] > 0:
            self.assertLess(time.monotonic(), give_up)
            time.sleep(0.02)

    def test_completions_take_n_stop_and_seed(self):
        answer = self.complete(**TEXT, n=3, max_tokens=8, seed=5)
        texts = [choice.text for choice in answer.choices]
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        self.assertEqual(len(set(texts)), 3)
        again = self.complete(**TEXT, n=3, max_tokens=8, seed=5)
        self.assertEqual([choice.text for choice in again.choices], texts)
        streamed = [""] * 3
        for event in self.complete(**TEXT, n=3, max_tokens=8, seed=5, stream=True):
            streamed[event.choices[0].index] += event.choices[0].text
        self.assertEqual(streamed, texts)
        whole = self.complete(**TEXT, max_tokens=20, temperature=0).choices[0].text
        stop = whole[len(whole) // 2:][:3]
        cut = self.complete(**TEXT, max_tokens=20, temperature=0, stop=[stop]).choices[0]
        self.assertEqual((cut.text, cut.finish_reason), (whole[:whole.index(stop)], "stop"))
        both = self.complete(model="opt-nano", prompt=["The", "He"], max_tokens=4, temperature=0)
        self.assertEqual(len(both.choices), 2)

    def test_log_probabilities_of_chosen_and_other_tokens(self):
        choice = self.complete(**TEXT, max_tokens=6, temperature=0, logprobs=5).choices[0]
        found = choice.logprobs
        self.assertEqual(len(found.tokens), 6)
        self.assertEqual("".join(found.tokens), choice.text)
        for token, log_prob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
            self.assertEqual(len(top), 5)
            self.assertEqual(top[token], log_prob)
            self.assertEqual(max(top.values()), log_prob)  # greedy
        sampled = self.chat(**CHAT, max_tokens=6, seed=3, logprobs=True, top_logprobs=20)
        content = sampled.choices[0].logprobs.content
        self.assertEqual(len(content), sampled.usage.completion_tokens)
        for entry in content:
            self.assertEqual(len(entry.top_logprobs), 20)
            order = [top.logprob for top in entry.top_logprobs]
            self.assertEqual(order, sorted(order, reverse=True))
            self.assertLessEqual(entry.logprob, order[0])
        streamed = []
        for chunk in self.chat(**CHAT, max_tokens=6, seed=3, logprobs=True, top_logprobs=20,
                               stream=True):
            if chunk.choices[0].logprobs:
                streamed += chunk.choices[0].logprobs.content
        self.assertEqual(streamed, content)

    def test_errors_are_of_the_packages_kinds(self):
        openai = self.openai
        for error, call, body in (
                (openai.NotFoundError, self.complete, {**TEXT, "model": "other"}),
                (openai.BadRequestError, self.complete, {**TEXT, "temperature": -1}),
                (openai.BadRequestError, self.complete, {**TEXT, "logprobs": 21}),
                (openai.BadRequestError, self.chat, {**CHAT, "top_logprobs": 3}),
                (openai.BadRequestError, self.chat, {**CHAT, "messages": []}),
                (openai.BadRequestError, self.chat, {**CHAT, "stream": True, "n": 1000})):
            with self.subTest(body=body), self.assertRaises(error) as raised:
                call(**body)
            self.assertTrue(raised.exception.body["message"])
        with self.assertRaises(openai.InternalServerError) as raised:  # 504
            self.complete(**TEXT, max_tokens=500, extra_body={"ignore_eos": True},
                          extra_headers={"X-Request-Timeout-Ms": "1"})
        self.assertEqual(raised.exception.status_code, 504)


@unittest.skipUnless(importlib.util.find_spec("openai"),
                     "no Python package openai here; tests/run.sh gets it from PyPI")
class RefusedTest(ClientTestCase):
    FLAGS = ("--rate-limit", "1")

    def test_a_refusal_is_tried_again_when_the_hint_says(self):
        import openai
        with openai.OpenAI(base_url=self.url, api_key="x", max_retries=0) as client:
            with self.assertRaises(openai.RateLimitError) as raised:
                for _ in range(50):
                    client.completions.create(**TEXT, max_tokens=1)
            self.assertGreaterEqual(int(raised.exception.response.headers["retry-after"]), 1)
            patient = client.with_options(max_retries=5)
            self.assertTrue(patient.completions.create(**TEXT, max_tokens=1).choices)


class ToolsTest(ClientTestCase):

    @unittest.skipUnless(CURL, "no curl here (package curl)")
    def test_curl_reads_a_stream(self):
        done = subprocess.run(
            [CURL, "-sS", "-N", "--fail-with-body", f"{self.url}/chat/completions", "-H",
             "Content-Type: application/json", "-d",
             json.dumps({**CHAT, "max_tokens": 5, "stream": True})],
            capture_output=True, text=True, timeout=support.TIMEOUT_S)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        events = done.stdout.split("\n\n")
        self.assertEqual(events[-2:], ["data: [DONE]", ""])
        self.assertEqual(json.loads(events[0].removeprefix("data: "))["object"],
                         "chat.completion.chunk")

    @unittest.skipUnless(WRK, "no wrk here (package wrk)")
    def test_wrk_gets_an_answer_to_every_request(self):
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            body = json.dumps({**TEXT, "max_tokens": 4})
            script.write('wrk.method = "POST"\n'
                         'wrk.headers["Content-Type"] = "application/json"\n'
                         f"wrk.body = [[{body}]]\n")
            script.flush()
            done = subprocess.run(
                [WRK, "-t1", "-c16", "-d2s", "--timeout", "30s", "-s", script.name,
                 f"{self.url}/completions"], capture_output=True, text=True,
                timeout=support.TIMEOUT_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        answered = int(re.search(r"(\d+) requests in", done.stdout)[1])
        self.assertGreater(answered, 16, done.stdout)
        self.assertNotIn("Non-2xx", done.stdout)
        self.assertNotIn("Socket errors", done.stdout)


if __name__ == "__main__":
    support.main()
