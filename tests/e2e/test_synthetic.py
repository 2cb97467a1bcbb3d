"""Models that exist by their shape only: `--model synthetic:SHAPE[:SCHEME[:SEED]]`."""

import json

import support
from support import LLAMA, OPT

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
        for scheme in ("w4a16", "w4a8", "w4a4", "w4a4kv", "w4a3kv", "w3a3kv", "w2a16",
                       "vptq-v8-k256-r16", "vptq-v6-k512-g2-o1v4k64", "vptq-v4-k256-a8kv4"):
            with self.subTest(scheme=scheme):
                self.assertEqual(len(self.generate(f"{SHAPE}:{scheme}")["token_ids"]), 8)

    @support.needs_mpi
    def test_bench_decodes_behind_tokens_that_nobody_computed(self):
        flags = ["--prompt-tokens", "8", "--new-tokens", "8", "--repeats", "1", "--batch", "3"]
        for tp, scheme in ((1, "w4a4kv"), (2, "w4a4kv"), (2, "vptq-v8-k256-r256")):
            done = self.succeed(["bench", "engine", "--model", f"{SHAPE}:{scheme}", "--tp", str(tp),
                                 "--context", "100", "--json", *flags], tp)
            decode = json.loads(done.stdout)["decode"]
            self.assertEqual(decode["context"], 100)
            self.assertGreater(decode["bytes"], 0)

    def test_plan_says_what_ranks_allocate(self):
        self.check_plan("w4a8", 0.03)

    def test_plan_says_what_ranks_allocate_of_vectors(self):
        # All is counted but that biases and norms are held in fp32.
        self.check_plan("vptq-v6-k4096-r16", 0.004)

    @support.needs_mpi
    def check_plan(self, scheme, delta):
        model = "opt-125m"
        flags = ["--model", model, "--scheme", scheme, "--gpus", "2", "--gpu-memory", "2G",
                 "--dtype", "fp32", "--batch", "5", "--json"]
        plan = [json.loads(line) for line in self.succeed(["plan", *flags]).stdout.splitlines()]
        self.assertEqual([(option["tp"], option["pp"]) for option in plan], [(2, 1), (1, 2)])
        for option in plan:
            report = self.folder / "report.json"
            self.succeed(["run", "--model", f"synthetic:{model}:{scheme}", "--prompt", "1 2",
                          "--max-tokens", "2", "--max-seqs", "5", "--tp", str(option["tp"]),
                          "--pp", str(option["pp"]), "--report", report], 2)
            ranks = json.loads(report.read_text())["memory"]["ranks"]
            parts = ("weight_bytes", "kv_cache_bytes", "activation_bytes")
            most = max(ranks, key=lambda rank: sum(rank[part] for part in parts))
            self.assertAlmostEqual(option["weight_bytes"] / most["weight_bytes"], 1.0, delta=delta)
            self.assertEqual(option["kv_bytes"], most["kv_cache_bytes"])
            self.assertEqual(option["activation_bytes"], most["activation_bytes"])

    def test_plan_says_what_does_not_fit(self):
        flags = ["--gpus", "2", "--batch", "64", "--json"]
        done = self.succeed(["plan", "--model", "llama-2-70b", "--gpu-memory", "80G", *flags])
        fits = {(line["scheme"], line["tp"]): line["fits"] for line in done.lines}
        self.assertFalse(fits["w16a16", 2])
        self.assertTrue(fits["w4a4kv", 2])
        self.check_error(support.run(["plan", "--model", OPT, "--gpu-memory", "80x", *flags]), 2,
                         "--gpu-memory", "80x")
        done = support.run(["plan", "--model", "opt-9b", "--gpu-memory", "1G", *flags])
        self.check_error(done, 1, "opt-9b", "opt-66b")

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
