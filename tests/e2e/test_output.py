"""What goes to standard output, standard error and the report, and from which rank."""

import json
import os
import re

import support
from support import LLAMA, OPT

RUN = ["run", "--model", OPT, "--prompt", "Once upon a time", "--max-tokens", "8"]
FIELDS = ["id", "prompt_tokens", "token_ids", "text", "finish_reason"]


class JsonTest(support.TestCase):

    def test_run_prints_one_object_per_prompt_in_their_order(self):
        lengths = [300, 1, 150, 7, 80]
        prompts = self.write("p.jsonl", [
            {"id": f"p{i}", "token_ids": [5 + i] * n, "max_tokens": 1 + 3 * i, "unknown": i}
            for i, n in enumerate(lengths)])
        args = ["run", "--model", OPT, "--prompts", prompts, "--json", "--ignore-eos"]
        result = self.succeed(args)
        for i, (n, line) in enumerate(zip(lengths, result.lines, strict=True)):
            self.assertEqual(list(line), FIELDS)
            self.assertEqual((line["id"], line["prompt_tokens"], line["finish_reason"]),
                             (f"p{i}", n, "length"))
            self.assertEqual(len(line["token_ids"]), 1 + 3 * i)
            self.assertIsInstance(line["text"], str)
        if support.MPIEXEC:
            for tp, pp in ((2, 1), (1, 2)):
                together = self.succeed([*args, "--tp", tp, "--pp", pp], ranks=2)
                self.assertEqual(together.stdout, result.stdout)

    def test_ids_are_strings_integers_or_line_numbers(self):
        prompts = self.write("p.jsonl", '{"prompt": "a"}\n\n{"id": 17, "prompt": "b"}\n'
                             '{"id": "x \\" y", "prompt": "c"}\n{"id": null, "prompt": "d"}')
        result = self.succeed(["run", "--model", OPT, "--prompts", prompts, "--json",
                               "--max-tokens", "1"])
        self.assertEqual([line["id"] for line in result.lines], ["1", "17", 'x " y', "5"])

    def test_a_single_prompt(self):
        line, = self.succeed([*RUN, "--json"]).lines
        self.assertEqual(list(line), FIELDS)
        self.assertEqual(self.succeed(RUN).stdout, line["text"] + "\n")

    def test_prompts_from_a_pipe(self):
        read, write = os.pipe()
        os.write(write, b'{"id": "piped", "token_ids": [5, 6]}\n')
        os.close(write)
        with open(read, "rb") as pipe:
            line, = self.succeed(["run", "--model", OPT, "--prompts", "/dev/stdin", "--json",
                                  "--max-tokens", "2"], stdin=pipe).lines
        self.assertEqual(line["id"], "piped")

    def test_eval(self):
        text = self.write("text.txt", "It was the best of times, it was the worst of times. " * 20)
        args = ["eval", "--model", LLAMA, "--text", text, "--window", "32", "--json"]
        line, = self.succeed(args).lines
        self.assertEqual(list(line), ["perplexity", "nll", "tokens"])
        self.assertGreater(line["perplexity"], 1)
        self.assertEqual(line["tokens"] % 31, 0)
        short, = self.succeed([*args, "--max-tokens", "64"]).lines
        self.assertEqual(short["tokens"], 62)
        if support.MPIEXEC:
            together, = self.succeed([*args, "--tp", "2"], ranks=2).lines
            self.assertEqual(together["tokens"], line["tokens"])
            self.assertAlmostEqual(together["nll"], line["nll"], places=5)

    def test_inspect(self):
        for model, architecture, kv_heads, tp_sizes in (
                (OPT, "OPTForCausalLM", 4, [1, 2, 4]), (LLAMA, "LlamaForCausalLM", 2, [1, 2, 4])):
            line, = self.succeed(["inspect", model, "--json"]).lines
            self.assertEqual(line["architecture"], architecture)
            self.assertEqual((line["vocab"], line["hidden"], line["num_layers"],
                              line["num_kv_heads"]), (1024, 128, 4, kv_heads))
            self.assertEqual(line["tp_sizes"], tp_sizes)
            header = support.Safetensors(model / "model.safetensors").header
            self.assertEqual(line["total"]["tensors"], len(header.keys() - {"__metadata__"}))
            self.assertEqual(line["total"]["bits_per_weight"], 16)
            self.assertEqual(sum(part["bytes"] for part in line["parts"].values()),
                             line["total"]["bytes"])
            self.assertIn(architecture, self.succeed(["inspect", model]).stdout)

    def test_check(self):
        line, = self.succeed(["check", "--json", "--threads", "1"]).lines
        self.assertEqual([rank["problem"] for rank in line["ranks"]], [""])
        self.assertIn("thinwire", self.succeed(["check", "--threads", "1"]).stdout)
        if support.MPIEXEC:
            line, = self.succeed(["check", "--json", "--threads", "1"], ranks=2).lines
            self.assertEqual([rank["rank"] for rank in line["ranks"]], [0, 1])
            self.assertGreater(line["all_reduce_8k_us"], 0)

    @support.needs_mpi
    def test_bench_comm(self):
        lines = self.succeed(["bench", "comm", "--min-bytes", "16K", "--max-bytes", "64K",
                              "--width", "512", "--seconds", "0.01", "--threads", "1", "--json",
                              "--strategies", "fp16,one-shot-q4,token-owner-q8"], ranks=2).lines
        self.assertEqual([(line["strategy"], line["logical_bytes"]) for line in lines],
                         [(name, size) for size in (16384, 65536)
                          for name in ("fp16", "one-shot-q4", "token-owner-q8")])
        for line in lines:
            self.assertEqual(line["ranks"], 2)
            self.assertLessEqual(line["p50_us"], line["p99_us"])
            self.assertLess(line["error"], 0.15)
        share = [line["wire_bytes"] / line["logical_bytes"] for line in lines[:3]]
        self.assertEqual(share[0], 1.0)
        self.assertLess(share[1], 0.29)
        self.assertLess(share[2], 0.52)

    def test_bench_kernels(self):
        limits, *lines = self.succeed(["bench", "kernels", "--width", "128", "--seconds", "0.001",
                                       "--kernels", "norm,linear", "--threads", "1",
                                       "--json"]).lines
        self.assertGreater(limits["byte_rate"], 0)
        self.assertGreater(limits["operation_rate"], 0)
        self.assertEqual([line["kernel"] for line in lines], ["norm"] + 3 * ["linear"])
        for line in lines:
            self.assertGreater(line["us"], 0)
            share = line["bytes"] / line["us"] * 1e6 / limits["byte_rate"]
            self.assertAlmostEqual(line["of_byte_rate"] / share, 1.0, places=6)

    def test_bench_engine(self):
        line, = self.succeed(["bench", "engine", "--model", OPT, "--prompt-tokens", "32",
                              "--new-tokens", "8", "--repeats", "1", "--json"]).lines
        self.assertGreater(line["prefill"]["tokens_per_second"], 0)
        self.assertGreater(line["decode"]["tokens_per_second"], 0)

    def test_bench_engine_fits_its_prompt_into_the_context(self):
        line, = self.succeed(["bench", "engine", "--model", OPT, "--new-tokens", "500",
                              "--repeats", "1", "--json"]).lines
        self.assertEqual(line["prefill"]["tokens"], 512 - 500)


class ReportTest(support.TestCase):

    def report(self, *flags, ranks=0):
        path = self.folder / "report.json"
        result = self.succeed([*RUN, "--json", "--ignore-eos", "--report", path, *flags], ranks)
        return result.lines[0], json.loads(path.read_text())

    def test_one_rank_sends_nothing(self):
        _, report = self.report()
        self.assertEqual(report["wire"]["total"],
                         {"logical_bytes": 0, "payload_bytes": 0, "metadata_bytes": 0, "calls": 0,
                          "codec_us": 0, "transfer_us": 0})
        self.assertEqual(report["generated_tokens"], 8)
        self.assertGreater(report["tokens_per_second"], 0)
        self.assertGreater(report["ttft_ms"], 0)
        memory = report["memory"]
        for part in ("weight_bytes", "kv_cache_bytes", "activation_bytes", "peak_resident_bytes"):
            self.assertGreater(memory[part], 0)
            self.assertEqual(memory[part], sum(rank[part] for rank in memory["ranks"]))

    @support.needs_mpi
    def test_wire_bytes_against_the_fp16_baseline(self):
        # Hidden size 128, 4 layers, two ranks: a rank sends its half of both sums of a layer to the
        # other, 2 bytes a number in fp16.
        native_line, native = self.report("--tp", "2", ranks=2)
        tokens = native["prompt_tokens"] + native["generated_tokens"] - 1
        for site in ("attention_out", "mlp_out"):
            entry = native["wire"]["sites"][site]
            self.assertEqual(entry["logical_bytes"], 2 * 4 * tokens * 128 * 2)
            self.assertEqual(entry["payload_bytes"], 2 * entry["logical_bytes"])
            self.assertEqual(entry["metadata_bytes"], 0)
            self.assertEqual(entry["calls"], 2 * 4 * native["steps"])
        half_line, half = self.report("--tp", "2", "--wire", "fp16", ranks=2)
        for site in ("attention_out", "mlp_out"):
            entry = half["wire"]["sites"][site]
            self.assertEqual(entry["payload_bytes"], entry["logical_bytes"])
            self.assertEqual(entry["logical_bytes"],
                             native["wire"]["sites"][site]["logical_bytes"])
            self.assertEqual(entry["metadata_bytes"], 0)
        self.assertEqual(half_line["prompt_tokens"], native_line["prompt_tokens"])
        for report in (native, half):
            for field in ("logical_bytes", "payload_bytes", "metadata_bytes", "calls"):
                self.assertEqual(report["wire"]["total"][field],
                                 sum(site[field] for site in report["wire"]["sites"].values()))
            self.assertEqual(len(report["memory"]["ranks"]), 2)

    @support.needs_mpi
    def test_half_precision_sends_half(self):
        _, report = self.report("--tp", "2", "--dtype", "fp16", ranks=2)
        entry = report["wire"]["sites"]["mlp_out"]
        self.assertEqual(entry["payload_bytes"], entry["logical_bytes"])

    @support.needs_mpi
    def test_a_stage_hands_the_residual_on(self):
        _, report = self.report("--pp", "2", ranks=2)
        self.assertEqual(report["pp"], 2)
        tokens = report["prompt_tokens"] + report["generated_tokens"] - 1
        hops = [site for name, site in report["wire"]["sites"].items()
                if site["logical_bytes"] == tokens * 128 * 2]
        self.assertEqual([site["payload_bytes"] for site in hops], [tokens * 128 * 4],
                         report["wire"])

    def test_a_report_replaces_the_one_before(self):
        (self.folder / "report.json").write_text("old")
        self.report()
        self.assertEqual([file.name for file in self.folder.iterdir()], ["report.json"])


class HelpTest(support.TestCase):

    FLAGS = {
        (): ["run", "eval", "quantize", "inspect", "report", "check", "bench", "--version",
             "--log-level"],
        ("run",): ["--model", "--tp", "--pp", "--dtype", "--wire", "--norm-codes", "--hop",
                   "--device", "--threads", "--kv-memory", "--page-size", "--max-seqs",
                   "--max-step-tokens", "--steps-ahead", "--step-timeout", "--prompt", "--prompts",
                   "--max-tokens", "--temperature", "--top-p", "--top-k", "--seed", "--stop",
                   "--ignore-eos", "--json", "--report"],
        ("eval",): ["--model", "--tp", "--text", "--window", "--max-tokens", "--json"],
        ("quantize",): ["--model", "--out", "--scheme", "--weights", "--acts", "--kv", "--calib",
                        "--nsamples", "--seqlen", "--group-size", "--seed", "--tp", "--threads"],
        ("inspect",): ["DIR", "--json"],
        ("report",): ["FILE.json", "--output"],
        ("check",): ["--threads", "--json"],
        ("bench",): ["engine", "comm", "kernels"],
        ("bench", "comm"): ["--strategies", "--min-bytes", "--max-bytes", "--width", "--json"],
        ("bench", "kernels"): ["--kernels", "--device", "--width", "--seconds", "--json"],
        ("bench", "engine"): ["--model", "--batch", "--prompt-tokens", "--new-tokens", "--repeats",
                              "--json"],
    }

    def test_help_of_every_subcommand(self):
        for command, flags in self.FLAGS.items():
            result = self.succeed([*command, "--help"])
            for flag in flags:
                self.assertIn(flag, result.stdout)
            self.assertEqual(result.stderr, "")
            self.assertEqual(self.succeed([*command, "-h"]).stdout, result.stdout)

    @support.needs_mpi
    def test_help_is_printed_once(self):
        for command in ((), ("run",)):
            alone = self.succeed([*command, "--help"]).stdout
            self.assertEqual(self.succeed([*command, "--help"], ranks=2).stdout, alone)

    def test_version(self):
        self.assertRegex(self.succeed(["--version"]).stdout, r"^thinwire \d+\.\d+\.\d+\n$")


class LogTest(support.TestCase):
    """Standard error: a log of rank 0, and a progress bar where a person looks."""

    def test_levels(self):
        prompts = self.write("p.jsonl", [{"token_ids": [5, i]} for i in range(50)])
        args = ["run", "--model", OPT, "--prompts", prompts, "--max-tokens", "4"]
        self.assertIn(" info ", self.succeed(args).stderr)
        for flags in (["--log-level", "off"], ["--log-level", "error"]):
            self.assertEqual(self.succeed([*flags, *args]).stderr, "")

    @support.needs_mpi
    def test_only_rank_0_logs(self):
        alone = self.succeed(RUN)
        result = self.succeed([*RUN, "--tp", "2"], ranks=2)
        self.assertEqual(result.stderr.count("OPTForCausalLM"), 1)
        self.assertEqual(len(result.stdout.splitlines()), len(alone.stdout.splitlines()))

    def test_no_progress_into_files_and_pipes(self):
        prompts = self.write("p.jsonl", [{"token_ids": [5, i]} for i in range(50)])
        result = self.succeed(["run", "--model", OPT, "--prompts", prompts, "--json"])
        self.assertNotIn("\r", result.stderr)
        self.assertNotIn("\033", result.stderr)

    def test_progress_on_a_terminal_is_wiped_at_the_end(self):
        prompts = self.write("p.jsonl", [{"token_ids": [5, i]} for i in range(50)])
        text = self.write("text.txt", "It was the best of times, it was the worst of times. " * 20)
        for args, label in (
                (["run", "--model", OPT, "--prompts", prompts, "--json"], "prompts done:"),
                (["run", "--model", OPT, "--prompts", prompts, "--json"], "loading"),
                (["eval", "--model", OPT, "--text", text, "--window", "16"], "windows")):
            screen, result = support.on_terminal(args)
            self.assertEqual(result.exit_code, 0, result)
            self.assertIn(label, screen)
            # A line that was drawn over ends with the wipe, so nothing of it is left.
            for line in re.split("\r\n|\n", screen):
                self.assertNotIn(label, line.rsplit("\r\033[K", 1)[-1], screen)
            self.assertNotIn("\033", result.stdout)


if __name__ == "__main__":
    support.main()
