"""Many prompts at once, on four ranks with little memory, answer as each of them does alone."""

import json
import random

import support
from support import OPT

WORDS = ("the of and to in a is that was for it with as his on be at by had not are but from or "
         "have an they which one you were her all she there would their we him been has when who "
         "will no more if out so said what up its about into than them can only other new some "
         "could time these two may then do first any my now such like our over man me even most "
         "made after also did many before must through years where much your way well down should "
         "because each just those people how too little state good very make world still own see "
         "Zürich 日本 🙂 1984 3.14 \n").split(" ")


class Draws:
    """Numbers that are the same with every version of Python."""

    def __init__(self, seed):
        self._random = random.Random(seed)

    def below(self, n):
        return int(self._random.random() * n)

    def length(self, most):
        """1 to `most`, mostly short: seven in eight are as often 1 to 30 as 30 to 900."""
        if self.below(8) == 0:
            return 1 + self.below(most)
        return max(1, round(most ** self._random.random()))


def make_prompts(count, vocabulary, longest, max_tokens, seed):
    """Token ids and texts of 1 to `longest` tokens; a third is sampled, the others greedy."""
    draws = Draws(seed)
    prompts = []
    for i in range(count):
        length = {0: longest, 1: 1}.get(i, draws.length(longest))
        # Long answers outgrow the memory that they began with.
        most = 48 if i % 8 == 5 else max_tokens
        prompt = {"id": f"p{i}", "max_tokens": 1 + draws.below(most)}
        if i % 2 == 0:
            prompt["token_ids"] = [draws.below(vocabulary) for _ in range(length)]
        else:
            # A word is one to eight tokens; two on average.
            words = [WORDS[draws.below(len(WORDS))] for _ in range(max(1, length // 3))]
            prompt["prompt"] = " ".join(words)
        if i % 3 == 0:
            prompt.update(temperature=0.7, top_p=0.95, seed=i)
        prompts.append(prompt)
    return prompts


@support.too_slow_sanitized
@support.needs_mpi
class ManyPrompts(support.TestCase):

    MIB = 1 << 20

    def check(self, model, prompts, *flags):
        file = self.write("prompts.jsonl", prompts)
        args = ["run", "--model", model, "--prompts", file, "--json", "--ignore-eos"]
        result, report = self.run_with_report([*args, "--tp", "2", "--pp", "2", *flags], ranks=4)
        alone, report_alone = self.run_with_report([*args, "--max-seqs", "1"])

        answers, expected = result.lines, alone.lines
        self.assertEqual([line["id"] for line in answers], [prompt["id"] for prompt in prompts])
        different = [line["id"] for line, own in zip(answers, expected, strict=True) if line != own]
        self.assertEqual(different, [])
        for line, prompt in zip(answers, prompts):
            self.assertEqual((len(line["token_ids"]), line["finish_reason"]),
                             (prompt["max_tokens"], "length"))

        # Memory was short, and yet many prompts shared each step.
        self.assertGreater(report["preemptions"], 0)
        self.assertEqual((report["prompts"], report["failed_prompts"]), (len(prompts), 0))
        self.assertEqual(report["generated_tokens"], sum(p["max_tokens"] for p in prompts))
        lengths = [line["prompt_tokens"] for line in answers]
        self.assertGreater(report["prompt_tokens"], sum(lengths))  # some were computed again
        self.assertLess(report["steps"], report_alone["steps"] / 2.5)
        program = max(support.idle_bytes(), 64 * self.MIB)
        for rank in report["memory"]["ranks"]:
            planned = rank["weight_bytes"] + rank["kv_cache_bytes"] + rank["activation_bytes"]
            # The program and its libraries, MPI and its buffers.
            self.assertLess(rank["peak_resident_bytes"], planned + program, report["memory"])
        return lengths

    def run_with_report(self, args, ranks=0):
        path = self.folder / "report.json"
        result = self.succeed([*args, "--report", path], ranks, timeout=900)
        report = json.loads(path.read_text())
        print(f"{max(ranks, 1)} ranks, {result.seconds:.0f} s:",
              {key: report[key] for key in ("prompt_tokens", "generated_tokens", "steps",
                                            "preemptions")},
              [rank["peak_resident_bytes"] for rank in report["memory"]["ranks"]], flush=True)
        return result, report


class NanoTest(ManyPrompts):

    def test_two_hundred_prompts(self):
        prompts = make_prompts(200, 1024, 400, 64, seed=1)
        lengths = self.check(OPT, prompts, "--kv-memory", "1M", "--page-size", "2")
        self.assertEqual((min(lengths), max(lengths)), (1, 400))


@support.needs_models
class MiniTest(ManyPrompts):

    def test_a_thousand_prompts(self):
        prompts = make_prompts(1000, 4096, 900, 8, seed=2)
        lengths = self.check(support.larger_model("opt-mini"), prompts, "--kv-memory", "5M",
                             "--page-size", "1")
        self.assertEqual((min(lengths), max(lengths)), (1, 900))


if __name__ == "__main__":
    support.main()
