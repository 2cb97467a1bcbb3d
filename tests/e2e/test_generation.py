"""Texts and tokens: flags, lines that override them, and the same answers on every mesh."""

import json

import support
from support import LLAMA, OPT

TEXT = "Once upon a time"
MESHES = [(2, 1), (1, 2), (2, 2)]


def golden_prompts(model):
    """What Hugging Face made of some prompts; their texts without the first token's name."""
    prompts = json.loads((model / "golden.json").read_text())["prompts"]
    for prompt in prompts:
        prompt["text"] = prompt["text"].removeprefix("</s>" if model == OPT else "<s>")
    return prompts


class GenerationTest(support.TestCase):

    def generate(self, *flags, model=OPT, prompt=TEXT, ranks=0):
        line, = self.succeed(["run", "--model", model, "--prompt", prompt, "--json", *flags],
                             ranks).lines
        return line

    def generate_lines(self, lines, *flags, model=OPT, ranks=0):
        file = self.write("prompts.jsonl", lines)
        return self.succeed(["run", "--model", model, "--prompts", file, "--json", *flags],
                            ranks).lines


class FlagsTest(GenerationTest):

    def test_greedy_is_what_hugging_face_says(self):
        for model in (OPT, LLAMA):
            golden = golden_prompts(model)
            lines = [{"prompt": entry["text"], "max_tokens": 32} for entry in golden]
            for entry, line in zip(golden, self.generate_lines(lines, "--ignore-eos", model=model),
                                   strict=True):
                self.assertEqual(line["prompt_tokens"], len(entry["ids"]))
                # A step where two tokens are as good as equal may go either way.
                sure = next((i for i, gap in enumerate(entry["gap"]) if gap < 1e-3), 32)
                self.assertEqual(line["token_ids"][:sure], entry["greedy"][:sure])

    def test_token_ids_are_taken_as_they_are(self):
        ids = golden_prompts(OPT)[0]
        by_text, by_ids = self.generate_lines([{"prompt": ids["text"]}, {"token_ids": ids["ids"]}],
                                              "--max-tokens", "8")
        self.assertEqual(by_text["token_ids"], by_ids["token_ids"])
        self.assertEqual(by_text["prompt_tokens"], by_ids["prompt_tokens"])

    def test_max_tokens(self):
        long = self.generate("--max-tokens", "12", "--ignore-eos")
        self.assertEqual((len(long["token_ids"]), long["finish_reason"]), (12, "length"))
        short = self.generate("--max-tokens", "5", "--ignore-eos")
        self.assertEqual(short["token_ids"], long["token_ids"][:5])
        self.assertTrue(long["text"].startswith(short["text"]))

    def test_the_context_ends_a_text(self):
        line, = self.generate_lines([{"token_ids": [5] * 500}], "--max-tokens", "100",
                                    "--ignore-eos")
        self.assertEqual((len(line["token_ids"]), line["finish_reason"]), (12, "length"))
        line, = self.generate_lines([{"token_ids": [5] * 511}], "--max-tokens", "100")
        self.assertEqual((len(line["token_ids"]), line["finish_reason"]), (1, "length"))

    def test_a_stop_string_ends_the_text_before_it(self):
        whole = self.generate("--max-tokens", "24", "--ignore-eos")
        text = whole["text"]
        # In the middle of a token, over several of them, and one that does not come.
        for stop in (text[9:11], text[8:15], text[10]):
            line = self.generate("--max-tokens", "24", "--ignore-eos", "--stop", stop)
            self.assertEqual(line["text"], text[:text.index(stop)])
            self.assertEqual(line["finish_reason"], "stop")
            ids = line["token_ids"]
            self.assertEqual(ids, whole["token_ids"][:len(ids)])
            self.assertLess(len(ids), 24)
        line = self.generate("--max-tokens", "24", "--ignore-eos", "--stop", "does not come")
        self.assertEqual((line["text"], line["finish_reason"]), (text, "length"))

    def test_the_first_of_several_stop_strings_wins(self):
        text = self.generate("--max-tokens", "24", "--ignore-eos")["text"]
        line = self.generate("--max-tokens", "24", "--ignore-eos", "--stop", text[16:18], "--stop",
                             text[9:12], "--stop", "does not come")
        self.assertEqual(line["text"], text[:min(text.index(text[16:18]), text.index(text[9:12]))])

    def test_the_end_token_ends_a_text_unless_ignored(self):
        # Hot enough that end tokens come.
        lines = [{"token_ids": [2, 300 + i], "seed": i} for i in range(24)]
        flags = ["--max-tokens", "200", "--temperature", "2.5"]
        ended = self.generate_lines(lines, *flags)
        ignored = self.generate_lines(lines, *flags, "--ignore-eos")
        self.assertIn("stop", [line["finish_reason"] for line in ended])
        for stopped, whole in zip(ended, ignored, strict=True):
            self.assertEqual((len(whole["token_ids"]), whole["finish_reason"]), (200, "length"))
            ids = stopped["token_ids"]
            self.assertEqual(ids, whole["token_ids"][:len(ids)])
            self.assertNotIn(2, ids[:-1])
            self.assertEqual(stopped["finish_reason"], "stop" if ids[-1] == 2 else "length")
            self.assertNotIn("</s>", stopped["text"])

    def test_seeds(self):
        flags = ["--max-tokens", "16", "--temperature", "1", "--ignore-eos"]
        first = self.generate(*flags, "--seed", "7")
        self.assertEqual(self.generate(*flags, "--seed", "7"), first)
        self.assertNotEqual(self.generate(*flags, "--seed", "8")["token_ids"], first["token_ids"])
        self.assertNotEqual(self.generate(*flags, "--seed", str((1 << 63) - 1))["token_ids"],
                            first["token_ids"])

    def test_settings_that_leave_one_token_are_greedy(self):
        flags = ["--max-tokens", "16", "--ignore-eos"]
        greedy = self.generate(*flags)["token_ids"]
        for sampling in (["--temperature", "0", "--seed", "5"],
                         ["--temperature", "1", "--top-k", "1"],
                         ["--temperature", "1", "--top-p", "1e-6"],
                         ["--temperature", "1e-4"]):
            self.assertEqual(self.generate(*flags, *sampling)["token_ids"], greedy, sampling)

    def test_top_k_draws_from_the_first_k(self):
        golden = golden_prompts(OPT)[0]
        lines = [{"prompt": golden["text"], "seed": seed} for seed in range(200)]
        drawn = {line["token_ids"][0]
                 for line in self.generate_lines(lines, "--max-tokens", "1", "--temperature", "5",
                                                 "--top-k", "5")}
        self.assertEqual(drawn, set(golden["top5_ids"]))

    def test_lines_override_flags(self):
        lines = [{"prompt": TEXT},
                 {"prompt": TEXT, "max_tokens": 3},
                 {"prompt": TEXT, "temperature": 1, "seed": 5},
                 {"prompt": TEXT, "temperature": 1, "seed": 6, "top_p": 0.9, "top_k": 50},
                 {"prompt": TEXT, "stop": "e"},
                 {"prompt": TEXT, "stop": []}]
        flags = [[],
                 ["--max-tokens", "3"],
                 ["--temperature", "1", "--seed", "5"],
                 ["--temperature", "1", "--seed", "6", "--top-p", "0.9", "--top-k", "50"],
                 ["--stop", "e"],
                 []]
        together = self.generate_lines(lines, "--max-tokens", "16", "--ignore-eos")
        self.assertGreaterEqual(len({tuple(line["token_ids"]) for line in together}), 4)
        for line, own in zip(together, flags, strict=True):
            alone = self.generate("--ignore-eos", *([] if "--max-tokens" in own
                                                    else ["--max-tokens", "16"]), *own)
            for field in ("token_ids", "text", "finish_reason"):
                self.assertEqual(line[field], alone[field])

    def test_one_size_of_step_or_another(self):
        lines = [{"token_ids": [5 + i] * n, "max_tokens": 6}
                 for i, n in enumerate((1, 17, 130, 400))]
        expected = self.generate_lines(lines, "--ignore-eos")
        for flags in (["--max-step-tokens", "7"], ["--page-size", "1"], ["--page-size", "64"],
                      ["--max-seqs", "1"], ["--threads", "1"], ["--kv-memory", "2M"],
                      ["--steps-ahead", "1"]):
            self.assertEqual(self.generate_lines(lines, "--ignore-eos", *flags), expected, flags)


class TextTest(GenerationTest):

    def test_an_empty_prompt_is_the_first_token_alone(self):
        for model in (OPT, LLAMA):
            line = self.generate("--max-tokens", "4", model=model, prompt="")
            self.assertEqual(line["prompt_tokens"], 1)
            self.assertEqual(len(line["token_ids"]), 4)

    def test_any_text_is_a_prompt(self):
        texts = ["Zürich, naïve café", "日本語のテキスト", "🙂👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301 \u202e\u0000 \ufeff",
                 "\t\n  \r\n", "</s><s><pad>", "\U0010ffff", "a" * 300]
        for model in (OPT, LLAMA):
            lines = self.generate_lines([{"prompt": text} for text in texts], "--max-tokens", "4",
                                        model=model)
            self.assertEqual([line["finish_reason"] in ("length", "stop") for line in lines],
                             [True] * len(texts))
        for text in texts[:3]:
            line = self.generate("--max-tokens", "4", prompt=text)
            self.assertGreater(line["prompt_tokens"], 2)

    def test_bytes_that_are_no_text_come_out_as_text(self):
        # Tokens of single bytes at random: most are no UTF-8.
        result = self.generate_lines([{"token_ids": [2, 5 + 3 * i], "seed": i} for i in range(40)],
                                     "--temperature", "20", "--max-tokens", "20", "--ignore-eos")
        self.assertTrue(any("\ufffd" in line["text"] for line in result))


class MeshTest(GenerationTest):
    """One answer, however the model is cut."""

    LINES = ([{"prompt": f"The {word}", "seed": i, "temperature": 0.8, "top_p": 0.95, "top_k": 200}
              for i, word in enumerate(["king", "law", "city", "computer", "end"])]
             + [{"token_ids": [2] + [300 + i] * (40 * i + 1), "seed": i, "temperature": 1.2}
                for i in range(5)]
             + [{"prompt": "Greedy, greedy"}])

    @support.needs_mpi
    def test_sampled_text_is_the_same_on_every_mesh(self):
        for model in (OPT, LLAMA):
            flags = ["--max-tokens", "24", "--ignore-eos"]
            expected = self.generate_lines(self.LINES, *flags, model=model)
            for tp, pp in MESHES:
                answers = self.generate_lines(self.LINES, *flags, "--tp", tp, "--pp", pp,
                                              model=model, ranks=tp * pp)
                self.assertEqual(answers, expected, (tp, pp))
            ahead = self.generate_lines(self.LINES, *flags, "--tp", 2, "--steps-ahead", 1,
                                        model=model, ranks=2)
            self.assertEqual(ahead, expected)

    @support.needs_mpi
    def test_stop_strings_on_a_mesh(self):
        lines = [{"prompt": f"The {i}", "stop": ["e", ","]} for i in range(8)]
        expected = self.generate_lines(lines, "--max-tokens", "24")
        self.assertIn("stop", [line["finish_reason"] for line in expected])
        self.assertEqual(self.generate_lines(lines, "--max-tokens", "24", "--tp", "2", "--pp", "2",
                                             ranks=4), expected)
        self.assertEqual(self.generate_lines(lines, "--max-tokens", "24", "--tp", "2",
                                             "--steps-ahead", "1", ranks=2), expected)


if __name__ == "__main__":
    support.main()
