"""Models that exist by their shape only: `--model synthetic:SHAPE[:SCHEME[:SEED]]`."""

import json

import support
from support import LLAMA

SHAPE = f"synthetic:{LLAMA}"
NUMBERS = "1 2 3 4 5 6 7 8 9 10 11 12"


class SyntheticTest(support.TestCase):

    def generate(self, model, *flags, ranks=0):
        done = self.succeed(["run", "--model", model, "--prompt", NUMBERS, "--max-tokens", "8",
                             "--json", *flags], ranks)
        return json.loads(done.stdout)

    @support.needs_mpi
    def test_tokens_are_numbers_and_ranks_agree(self):
        alone = self.generate(f"{SHAPE}:w16a16:3")
        self.assertEqual(alone["text"].split(), [str(i) for i in alone["token_ids"]])
        self.assertEqual(alone["prompt_tokens"], 12)
        shared = self.generate(f"{SHAPE}:w16a16:3", "--tp", "2", "--pp", "2", ranks=4)
        self.assertEqual(alone["token_ids"], shared["token_ids"])

    def test_every_scheme_runs(self):
        for scheme in ("w4a16", "w4a8", "w4a4", "w4a4kv", "w4a3kv", "w3a3kv"):
            with self.subTest(scheme=scheme):
                self.assertEqual(len(self.generate(f"{SHAPE}:{scheme}")["token_ids"]), 8)

    @support.needs_mpi
    def test_bench_decodes_behind_tokens_that_nobody_computed(self):
        flags = ["--prompt-tokens", "8", "--new-tokens", "8", "--repeats", "1", "--batch", "3"]
        for tp in (1, 2):
            done = self.succeed(["bench", "engine", "--model", f"{SHAPE}:w4a4kv", "--tp", str(tp),
                                 "--context", "100", "--json", *flags], tp)
            decode = json.loads(done.stdout)["decode"]
            self.assertEqual(decode["context"], 100)
            self.assertGreater(decode["bytes"], 0)

    def test_inspect_shows_shapes_of_any_size(self):
        done = self.succeed(["inspect", "synthetic:opt-175b:w4a4kv", "--tp", "8", "--json"])
        self.assertEqual(json.loads(done.stdout)["scheme"], "w4a4kv")

    def test_errors_name_what_is_wrong(self):
        for model, word in (("synthetic:opt-9b", "opt-66b"), ("synthetic:opt-66b:w5a5", "w5a5"),
                            ("synthetic:", "SHAPE")):
            self.check_error(support.run(["run", "--model", model, "--prompt", "1"]), 1, word)
        self.check_error(support.run(["run", "--model", SHAPE, "--prompt", "Once upon"]), 1,
                         "token ids", "Once")


if __name__ == "__main__":
    support.main()
