"""Jobs whose ranks are split in a group that prefills and one that decodes: the same answers."""

import json
import re

import support
from support import LLAMA, OPT

# (ranks that prefill, ranks that decode, stages of each)
SPLITS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 2)]
STORY = ("The family of Dashwood had long been settled in Sussex. Their estate was large, and "
         "their residence was at Norland Park, in the centre of their property, where, for many "
         "generations, they had lived in so respectable a manner as to engage the general good "
         "opinion of their surrounding acquaintance. ")


def split_flags(prefill, decode, pp=1):
    return ["--prefill-ranks", prefill, "--decode-ranks", decode, "--pp", pp]


def prompts():
    lines = [
        {"prompt": "It is a truth universally acknowledged"},
        {"prompt": "Mr.", "temperature": 0.8, "seed": 7},
        {"prompt": STORY, "max_tokens": 40},
        {"prompt": "Once upon a time", "max_tokens": 1},
        {"prompt": STORY[:200], "temperature": 0.7, "top_p": 0.9, "seed": 3},
        {"prompt": "She was", "stop": [" the", "."]},
        {"token_ids": [5]},
        {"prompt": STORY[60:], "temperature": 1.0, "top_k": 20, "seed": 11, "max_tokens": 2},
    ]
    return [{"id": f"p{i}", "max_tokens": 24, **line} for i, line in enumerate(lines)]


@support.needs_mpi
class SplitTestCase(support.QuantizeTestCase):

    def answers(self, model, *flags, ranks=0, lines=None):
        """(What a run prints, its report, its log.)"""
        file = self.write("prompts.jsonl", prompts() if lines is None else lines)
        report = self.folder / "report.json"
        result = self.succeed(["run", "--model", model, "--prompts", file, "--json", "--threads", 1,
                               "--report", report, *flags], ranks)
        return result.lines, json.loads(report.read_text()), result.stderr

    def split(self, model, split, *flags, **kwargs):
        return self.answers(model, *split_flags(*split), *flags, ranks=split[0] + split[1],
                            **kwargs)

    def share(self, report):
        """Of fp16's bytes, what the hand-off sent."""
        site = report["wire"]["sites"]["kv_handoff"]
        share = (site["payload_bytes"] + site["metadata_bytes"]) / site["logical_bytes"]
        self.assertAlmostEqual(share, report["kv_handoff"]["of_fp16"], 6)
        return share


class AnswersTest(SplitTestCase):

    def test_answers_are_those_of_one_rank(self):
        for model in (OPT, LLAMA):
            expected, _, _ = self.answers(model)
            for split in SPLITS:
                lines, report, _ = self.split(model, split)
                self.assertEqual(lines, expected, (model.name, split))
                prefill, decode = report["groups"]
                self.assertEqual((prefill["ranks"], decode["ranks"]), split[:2])
                self.assertEqual(prefill["prompt_tokens"], sum(l["prompt_tokens"] for l in lines))
                self.assertEqual(prefill["generated_tokens"], len(lines))
                self.assertEqual(decode["prompt_tokens"], 0)

    def test_codes_are_handed_over_as_they_are(self):
        for model in (OPT, LLAMA):
            quantized = self.quantize(model, "--scheme", "w4a4kv", name=model.name)
            alone, _, _ = self.answers(quantized)
            in_two, _, _ = self.answers(quantized, "--tp", 2, ranks=2)
            # Cut the same way, ranks compute the same codes.
            for split, expected in (((1, 1, 1), alone), ((2, 2, 1), in_two), ((2, 2, 2), alone)):
                lines, _, _ = self.split(quantized, split)
                self.assertEqual(lines, expected, (model.name, split))
            # Otherwise codes of the tokens to come may round the other way, as in any other mesh;
            # those of the prompt cannot, and with them the first token.
            for split, expected in (((1, 2, 1), alone), ((2, 1, 1), in_two)):
                lines, _, _ = self.split(quantized, split)
                for line, own in zip(lines, expected, strict=True):
                    self.assertEqual(line["token_ids"][:1], own["token_ids"][:1], (split, own))
                same = sum(line == own for line, own in zip(lines, expected))
                self.assertGreaterEqual(same, len(lines) * 3 // 4, (model.name, split))

    def test_with_the_exact_wire_codes_of_all_splits_are_the_same(self):
        for model in (OPT, LLAMA):
            quantized = self.quantize(model, "--scheme", "w4a4kv", name=model.name)
            expected, _, _ = self.answers(quantized, "--wire", "exact")
            for split in SPLITS:
                lines, _, _ = self.split(quantized, split, "--wire", "exact")
                self.assertEqual(lines, expected, (model.name, split))

    def test_little_memory_few_slots_and_small_steps_change_no_answer(self):
        lines = [{**line, "id": f"{line['id']}.{i}"} for i in range(4) for line in prompts()]
        # Two of these, computed in no time and decoded for long, need more than there is.
        lines += [{"id": f"long{i}", "token_ids": [5, i], "max_tokens": 120} for i in range(8)]
        expected, _, _ = self.answers(OPT, "--ignore-eos", lines=lines)
        for split in ((1, 1, 1), (2, 2, 1), (2, 2, 2)):
            # Room for 160 tokens of 4 KiB; where two ranks share them, each holds half.
            memory = 640 // split[0]
            found, report, _ = self.split(OPT, split, "--ignore-eos", "--kv-memory", f"{memory}K",
                                          "--page-size", 4, "--max-step-tokens", 32, "--max-seqs",
                                          6, lines=lines)
            self.assertEqual(found, expected, split)
            prefill, decode = report["groups"]
            self.assertGreater(decode["preemptions"], 0, split)
            self.assertGreater(decode["prompt_tokens"], 0, split)  # computed anew
            self.assertEqual(report["kv_handoff"]["sequences"], 36)
            self.assertEqual(report["generated_tokens"], sum(len(l["token_ids"]) for l in found))


class LedgerTest(SplitTestCase):

    def long_prompts(self):
        return [{"prompt": STORY[i:] + STORY, "max_tokens": 4} for i in (0, 40, 90)]

    def test_floats(self):
        _, report, log = self.split(LLAMA, (2, 1, 1), "--ignore-eos", lines=self.long_prompts())
        self.assertAlmostEqual(self.share(report), 2.0, 2)
        self.assertRegex(log, r"prefill: ranks 0 to 1, \d+ steps, \d+ prompt and 3 generated")
        self.assertRegex(log, r"decode: ranks 2 to 2, \d+ steps, 0 prompt and 9 generated")
        self.assertRegex(log, r"kv_handoff: 3 sequences of \d+ tokens, [\d.]+ MB, 2\.00\d of fp16")
        _, report, _ = self.split(LLAMA, (1, 2, 1), "--ignore-eos", "--dtype", "fp16",
                                  lines=self.long_prompts())
        self.assertAlmostEqual(self.share(report), 1.0, 2)

    def test_four_bits_are_at_most_27_hundredths_of_fp16(self):
        for model in (OPT, LLAMA):
            quantized = self.quantize(model, "--scheme", "w4a4kv", name=model.name)
            for split in SPLITS:
                lines, report, _ = self.split(quantized, split, "--ignore-eos",
                                              lines=self.long_prompts())
                tokens = sum(line["prompt_tokens"] for line in lines)
                self.assertGreaterEqual(min(line["prompt_tokens"] for line in lines), 100)
                self.assertEqual(report["kv_handoff"]["tokens"], tokens)
                config = json.loads((model / "config.json").read_text())
                heads = config.get("num_key_value_heads", config["num_attention_heads"])
                fp16 = (2 * 2 * config["num_hidden_layers"] * heads * config["hidden_size"]
                        // config["num_attention_heads"])
                site = report["wire"]["sites"]["kv_handoff"]
                self.assertEqual(site["logical_bytes"], tokens * fp16)
                self.assertLessEqual(self.share(report), 0.27, (model.name, split))
                print(f"{model.name} {split}: {self.share(report):.4f} of fp16, {tokens} tokens")


class UsageTest(SplitTestCase):

    def refused(self, *flags, ranks=0):
        return support.run(["run", "--model", OPT, "--prompt", "a", *flags], ranks)

    def test_numbers_that_do_not_fit(self):
        for flags, ranks, words in (
                (("--prefill-ranks", 1), 2, ("--prefill-ranks 1 without --decode-ranks",)),
                (("--decode-ranks", 1), 2, ("--decode-ranks 1 without --prefill-ranks",)),
                (split_flags(1, 2), 2, ("--prefill-ranks 1 --decode-ranks 2 needs 3", "found 2")),
                (split_flags(1, 1), 0, ("needs 2 ranks, found 1",)),
                (split_flags(1, 1, 2), 2, ("--pp 2", "both groups")),
                ((*split_flags(1, 1), "--tp", 2), 2, ("--tp 2 with --prefill-ranks 1",)),
        ):
            self.check_error(self.refused(*flags, ranks=ranks), 2, *words)

    def test_a_group_that_the_model_cannot_be_cut_into_is_named(self):
        self.check_error(self.refused(*split_flags(1, 3), ranks=4), 1, "rank 1: ",
                         "the decode group of 3 ranks", "--tp 3 does not divide num_heads 4")

    def test_other_commands_know_no_groups(self):
        result = support.run(["eval", "--model", OPT, "--text", self.evaluation,
                              *split_flags(1, 1)], ranks=2)
        self.check_error(result, 2, "unexpected argument '--prefill-ranks'")

    def test_ranks_with_other_groups_are_told_apart(self):
        run = ["run", "--model", OPT, "--prompt", "a"]
        command = [support.MPIEXEC, "--oversubscribe"]
        for flags in (split_flags(2, 1), split_flags(1, 2), split_flags(2, 1)):
            command += [":"] * (len(command) > 2) + ["-np", "1", support.BINARY,
                                                     *map(str, [*run, *flags])]
        self.check_error(support.run([], command=command), 1, "--prefill-ranks is 1 on rank 1")

    def test_help_says_how(self):
        text = re.sub(r"\s+", " ", support.run(["run", "--help"]).stdout)
        self.assertIn("--prefill-ranks N", text)
        self.assertIn("--decode-ranks N", text)


if __name__ == "__main__":
    support.main()
