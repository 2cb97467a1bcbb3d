"""Prompts that cannot run: one line says which and why; the others run."""

import json

import support
from support import LLAMA, OPT


class OnePromptTest(support.TestCase):
    """A file with a single line, which is wrong."""

    def fail_line(self, line, *parts, **kwargs):
        file = self.write("one.jsonl", line if isinstance(line, bytes) else json.dumps(line) + "\n")
        return self.fail_alike(["run", "--model", OPT, "--prompts", file, "--max-tokens", "4"], 1,
                               *parts, **kwargs)

    def test_a_token_id_outside_the_vocabulary(self):
        self.fail_line({"id": "big", "token_ids": [5, 1024, 7]}, "prompt 'big'", "token id 1024",
                       "position 1", "expected 0 to 1023")
        self.fail_line({"token_ids": [2, -1]}, "one.jsonl:1: ", "token_ids", "-1", ranks=False)
        self.fail_line({"token_ids": [2, 1 << 40]}, "one.jsonl:1: ", "token_ids", str(1 << 40),
                       ranks=False)
        self.fail_line({"token_ids": [2, (1 << 64) - 1]}, "one.jsonl:1: ", "token_ids", "18446744",
                       ranks=False)
        self.fail_line({"token_ids": [2, 1.5]}, "one.jsonl:1: ", "token_ids", "1.5", ranks=False)

    def test_a_prompt_longer_than_the_context(self):
        self.fail_line({"id": "long", "token_ids": [5] * 512}, "prompt 'long'", "512",
                       "expected at most 511")
        self.fail_line({"id": "text", "prompt": "word " * 2000}, "prompt 'text'",
                       "expected at most 511", ranks=False)

    def test_no_tokens(self):
        self.fail_line({"id": "none", "token_ids": []}, "prompt 'none'", "expected at least one")

    def test_malformed_lines(self):
        for i, (line, *parts) in enumerate((
                (b"{\n", "JSON"),
                (b"nonsense\n", "JSON"),
                (b'{"prompt": "\xff\xfe"}\n', "JSON"),
                (b'{"prompt": "a"} trailing\n', "JSON"),
                (b'{"prompt": "a\0b"}\n', "JSON"),
                (b'["prompt"]\n', "expected a JSON object"),
                (b'{"id": "a"}\n', "expected one of", "neither"),
                (b'{"prompt": "a", "token_ids": [1]}\n', "expected one of", "both"),
                (b'{"prompt": 7}\n', '"prompt"', "expected a string", "7"),
                (b'{"token_ids": "7"}\n', '"token_ids"', "expected a list"),
                (b'{"prompt": "a", "max_tokens": 0}\n', '"max_tokens"', "expected an integer"),
                (b'{"prompt": "a", "max_tokens": "9"}\n', '"max_tokens"', "expected an integer"),
                (b'{"prompt": "a", "temperature": -1}\n', "temperature", "expected", "-1"),
                (b'{"prompt": "a", "temperature": 1e999}\n', ),
                (b'{"prompt": "a", "top_p": 1.5}\n', "top_p", "expected", "1.5"),
                (b'{"prompt": "a", "top_k": -3}\n', '"top_k"', "expected", "-3"),
                (b'{"prompt": "a", "seed": -3}\n', '"seed"', "expected", "-3"),
                (b'{"prompt": "a", "stop": 5}\n', '"stop"', "expected", "5"),
                (b'{"prompt": "a", "stop": ["x", ""]}\n', '"stop"', "expected"),
                (b'{"prompt": "a", "id": [1]}\n', '"id"', "expected", "[1]"),
                (b'{"prompt": "' + b"[" * 100000 + b'\n', "JSON"),
                (b"[" * 100000 + b"\n", "JSON"))):
            with self.subTest(line=line[:60]):
                self.fail_line(line, "one.jsonl:1: ", *parts, ranks=i == 0)


class FileTest(support.TestCase):

    def test_no_file(self):
        path = self.folder / "none.jsonl"
        self.fail_alike(["run", "--model", OPT, "--prompts", path], 1, path, "No such file")

    def test_a_folder(self):
        self.fail_alike(["run", "--model", OPT, "--prompts", self.folder], 1, self.folder,
                        "expected a JSONL file")

    def test_no_prompts(self):
        for content in ("", "\n \n\t\n"):
            path = self.write("empty.jsonl", content)
            self.fail_alike(["run", "--model", OPT, "--prompts", path, "--json"], 1, path,
                            "no prompts", ranks=not content)

    def test_a_malformed_line_among_others(self):
        path = self.write("mixed.jsonl", '{"id": "a", "prompt": "The"}\n'
                          '\n'
                          '{"id": "b", "prompt": \n'
                          '{"id": "c", "token_ids": [5, 6]}\n')
        args = ["run", "--model", OPT, "--prompts", path, "--max-tokens", "3", "--json"]
        alone = support.run(args)
        line = self.check_error(alone, 1, f"{path}:3: ", "JSON")
        self.assertEqual([(a["id"], a["finish_reason"]) for a in alone.lines],
                         [("a", "length"), ("3", "error"), ("c", "length")])
        self.assertIn(alone.lines[1]["error"], line)
        if support.MPIEXEC:
            together = support.run([*args, "--tp", "2"], ranks=2)
            self.assertEqual(self.check_error(together, 1), line)
            self.assertEqual(together.stdout, alone.stdout)

    def test_each_bad_line_has_its_line(self):
        bad = [{"id": "long", "token_ids": [5] * 600}, {"id": "b"}, {"id": 7, "token_ids": [2000]}]
        good = [{"id": f"good{i}", "token_ids": [5, 6, 7]} for i in range(3)]
        path = self.write("mixed.jsonl", [bad[0], good[0], bad[1], good[1], bad[2], good[2]])
        result = support.run(["run", "--model", OPT, "--prompts", path, "--max-tokens", "3",
                              "--json", "--report", self.folder / "r.json"])
        self.assertEqual(result.exit_code, 1, result)
        self.assertEqual(len(result.errors), 3, result)
        self.assertIn("prompt 'long'", result.errors[0])
        self.assertIn(f"{path}:3: ", result.errors[1])
        self.assertIn("prompt '7'", result.errors[2])
        self.assertEqual([line["id"] for line in result.lines],
                         ["long", "good0", "b", "good1", "7", "good2"])
        self.assertEqual([line["finish_reason"] for line in result.lines], ["error", "length"] * 3)
        report = json.loads((self.folder / "r.json").read_text())
        self.assertEqual((report["prompts"], report["failed_prompts"]), (6, 3))

    def test_a_prompt_that_no_cache_holds(self):
        # One page of 16 tokens is 16 * 4 layers * 2 * 128 * 4 bytes.
        path = self.write("p.jsonl", [{"id": "short", "token_ids": [5]},
                                      {"id": "long", "token_ids": [5] * 100}])
        result = support.run(["run", "--model", OPT, "--prompts", path, "--max-tokens", "3",
                              "--json", "--kv-memory", "128K"])
        self.check_error(result, 1, "prompt 'long'", "KV pages", "7", "2")
        self.assertEqual([line["finish_reason"] for line in result.lines], ["length", "error"])


class TextTest(support.TestCase):
    """Texts of eval."""

    def fail_eval(self, text, *parts, flags=(), ranks=True):
        self.fail_alike(["eval", "--model", LLAMA, "--text", text, "--json", *flags], 1, text,
                        *parts, ranks=ranks)

    def test_no_text(self):
        self.fail_eval(self.folder / "none.txt", "No such file")

    def test_a_folder(self):
        self.fail_eval(self.folder, ranks=False)

    def test_an_empty_text(self):
        self.fail_eval(self.write("empty.txt", ""), "0 tokens", ranks=False)

    def test_a_text_shorter_than_a_window(self):
        self.fail_eval(self.write("short.txt", "Once upon a time"), "tokens", "512")

    def test_a_window_longer_than_the_context(self):
        text = self.write("long.txt", "Once upon a time. " * 200)
        self.fail_eval(text, "window of 513", "512", flags=["--window", "513"])
        self.fail_eval(text, "window of 1 ", "expected 2", flags=["--window", "1"], ranks=False)


if __name__ == "__main__":
    support.main()
