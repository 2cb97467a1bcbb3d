"""Jobs whose ranks send each other codes: what that saves, what it costs, and how it fails."""

import json
import shutil
import unittest

import support
from support import LLAMA, OPT

ONE_SHOT = [f"one-shot-q{bits}" for bits in (8, 6, 5, 4)]
TOKEN_OWNER = [f"token-owner-q{bits}" for bits in (8, 6, 5, 4)]
SUMS = ("attention_out", "mlp_out")


def per_rank(*commands):
    """A command under mpirun whose ranks have arguments of their own."""
    line = [support.MPIEXEC, "--oversubscribe"]
    for args in commands:
        line += [":"] * (len(line) > 2) + ["-np", "1", support.BINARY, *map(str, args)]
    return line


@support.needs_mpi
class WireTest(support.QuantizeTestCase):

    def report(self, model, *flags, ranks=2, tokens=24):
        """The --report of a job of three prompts."""
        prompts = self.write("prompts.jsonl", "".join(
            json.dumps({"id": str(i), "prompt": text, "max_tokens": tokens}) + "\n"
            for i, text in enumerate(("It is a truth universally acknowledged", "Mr.",
                                      "The family of Dashwood had long been settled in Sussex."))))
        file = self.folder / "report.json"
        self.succeed(["run", "--model", model, "--prompts", prompts, "--json", "--threads", 1,
                      "--report", file, *flags], ranks)
        return json.loads(file.read_text())

    def share(self, report):
        """Of fp16's bytes, what the sums of the layers sent."""
        sites = [report["wire"]["sites"][site] for site in SUMS]
        sent = sum(site["payload_bytes"] + site["metadata_bytes"] for site in sites)
        return sent / sum(site["logical_bytes"] for site in sites)

    # The perplexities of the nano models on half a licence text: their sums of 128 channels are the
    # hardest to code, and a wrong decoder costs factors.
    def test_perplexity_stays(self):
        for model in (OPT, LLAMA):
            base = self.perplexity(model)
            for bits, bound in ((8, 0.015), (6, 0.03), (5, 0.05), (4, 0.25)):
                for strategy in ("one-shot", "token-owner"):
                    for mesh in (("--tp", 2), ("--tp", 2, "--pp", 2)):
                        wire = f"{strategy}-q{bits}"
                        coded = self.perplexity(model, "--wire", wire, "--threads", 1, *mesh,
                                                ranks=2 * len(mesh) // 2)
                        self.assertLess(abs(coded / base - 1), bound, (model.name, wire, mesh))

    def test_bytes_are_those_that_the_strategy_promises(self):
        shares = {wire: self.share(self.report(LLAMA, "--tp", 2, "--wire", wire))
                  for wire in ("native", "fp16", *ONE_SHOT, *TOKEN_OWNER)}
        self.assertAlmostEqual(shares["native"], 2.0, 3)
        self.assertAlmostEqual(shares["fp16"], 1.0, 3)
        # Scales and checks weigh up to 0.3 bits an element in rows of 128 channels. Norms have 8
        # bits in the second half of what token-owner sends, but the first layer's is not sent.
        for one_shot, token_owner, bits in zip(ONE_SHOT, TOKEN_OWNER, (8, 6, 5, 4)):
            self.assertLess(shares[one_shot], (bits + 0.3) / 16, shares)
            self.assertGreater(shares[one_shot], bits / 16, shares)
            self.assertLess(shares[token_owner], (bits + 8 + 0.6) / 32, shares)
            self.assertGreater(shares[token_owner], (bits + 8 * 7 / 8) / 32, shares)

    def test_norms_in_the_codes_of_their_sites_travel_as_they_are(self):
        quantized = self.quantize(LLAMA, "--scheme", "w4a8", "--tp", 2)
        sums = self.share(self.report(quantized, "--tp", 2, "--wire", "token-owner-q4"))
        self.assertLess(sums, 0.43)
        base = self.perplexity(quantized, "--tp", 2, "--wire", "fp16", ranks=2)
        coded = self.perplexity(quantized, "--tp", 2, "--wire", "token-owner-q8", ranks=2)
        self.assertLess(abs(coded / base - 1), 0.01)

    def test_hops_cross_once(self):
        def hop(*flags, ranks):
            site = self.report(OPT, *flags, ranks=ranks)["wire"]["sites"]["stage_hop"]
            return (site["payload_bytes"] + site["metadata_bytes"]) / site["logical_bytes"]
        self.assertAlmostEqual(hop("--pp", 2, ranks=2), 2.0, 1)
        self.assertLess(hop("--pp", 2, "--hop", "q8", ranks=2), 0.53)
        self.assertLess(hop("--tp", 2, "--pp", 2, "--wire", "one-shot-q8", ranks=4), 0.56)
        # Ranks that keep only their own tokens' residual need no other's, but all need the norm.
        self.assertLess(hop("--tp", 2, "--pp", 2, "--wire", "token-owner-q8", ranks=4), 0.56)

    def test_auto_answers(self):
        report = self.report(LLAMA, "--tp", 2, "--wire", "auto")
        self.assertEqual(report["wire_format"], "auto")
        self.assertLessEqual(self.share(report), 1.01)

    def test_auto_remembers_what_it_measured(self):
        def log(*flags):
            return self.succeed(["run", "--model", OPT, "--tp", 2, "--wire", "auto",
                                 "--prompt", "a", "--max-tokens", 1, *flags], ranks=2,
                                env={"XDG_CACHE_HOME": self.folder}).stderr
        self.assertIn("measured now", log())
        self.assertRegex(log(), r"measured \d+s ago")
        self.assertIn("measured now", log("--wire-table", "new"))
        table, = (self.folder / "thinwire").iterdir()
        table.write_text("{")
        self.assertIn("measured now", log())

    def test_check_prints_what_auto_goes_by(self):
        line, = self.succeed(["check", "--json", "--threads", 1], ranks=2).lines
        self.assertEqual(line["strategies"][0]["rows"], 1)
        for entry in line["strategies"]:
            self.assertIn(entry["picked"], ("fp16", "one-shot-q5", "token-owner-q5"))

    def test_ranks_with_other_flags_are_told_apart(self):
        run = ["run", "--model", OPT, "--tp", 2, "--prompt", "a", "--wire"]
        result = support.run([], command=per_rank([*run, "fp16"], [*run, "one-shot-q4"]))
        self.check_error(result, 1, "--wire is one-shot-q4 on rank 1, but fp16 on rank 0")

    def test_ranks_with_other_checkpoints_are_told_apart(self):
        other = self.folder / "other"
        shutil.copytree(OPT, other)
        file = support.Safetensors(other / "model.safetensors")
        file.data = file.data[:-1] + bytes([file.data[-1] ^ 1])
        file.save()
        run = ["run", "--tp", 2, "--prompt", "a", "--model"]
        result = support.run([], command=per_rank([*run, OPT], [*run, other]))
        self.check_error(result, 1, "the digest of model.safetensors is", "on rank 1, but",
                         "expected the same on all ranks")


if __name__ == "__main__":
    unittest.TestCase.maxDiff = None
    support.main()
