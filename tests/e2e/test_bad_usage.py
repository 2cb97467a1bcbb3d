"""Wrong command lines and outputs that cannot be written."""

import json
import os
import pathlib
import stat
import subprocess

import support
from support import LLAMA, OPT

RUN = ["run", "--model", OPT, "--prompt", "The", "--max-tokens", "4"]


class FlagsTest(support.TestCase):

    def fail_usage(self, args, *parts, **kwargs):
        return self.fail_alike(args, 2, *parts, **{"parallel": (), **kwargs})

    def test_no_subcommand(self):
        self.fail_usage([], "subcommand",
                        "run, eval, quantize, inspect, plan, report, check, bench")

    def test_an_unknown_subcommand(self):
        self.fail_usage(["frobnicate"], "frobnicate", "expected one of run, eval")
        self.fail_usage(["bench", "frobnicate"], "frobnicate", "expected one of engine",
                        ranks=False)

    def test_an_unknown_flag(self):
        self.fail_usage(["--frob"], "--frob", ranks=False)
        self.fail_usage([*RUN, "--frob"], "--frob")
        self.fail_usage([*RUN, "extra"], "extra", ranks=False)
        for command in ("eval", "inspect", "check"):
            self.fail_usage([command, "--frob"], "--frob", ranks=False)

    def test_a_misspelt_flag_is_named_before_what_is_missing(self):
        self.fail_usage(["run", "--model", OPT, "--promt", "The"], "--promt", ranks=False)

    def test_a_line_break_in_an_argument(self):
        self.fail_usage([*RUN, "--frob\nthinwire: all is well"], "--frob", ranks=False)

    def test_missing_flags(self):
        self.fail_usage(["run", "--prompt", "The"], "--model", "required")
        self.fail_usage(["run", "--model", OPT], "--prompt", "--prompts", "required", ranks=False)
        self.fail_usage(["eval", "--model", OPT], "--text", "required", ranks=False)
        self.fail_usage(["inspect"], "model", "required", ranks=False)

    def test_two_sources_of_prompts(self):
        self.fail_usage([*RUN, "--prompts", "p.jsonl"], "--prompt", "--prompts", ranks=False)

    def test_values_that_are_none(self):
        for flag, value, *parts in (("--dtype", "nonsense", "fp32", "fp16", "bf16"),
                                    ("--device", "nonsense", "cpu", "cuda"),
                                    ("--tp", "0"), ("--tp", "two"), ("--pp", "-1"), ("--tp", "1.5"),
                                    ("--max-tokens", "0"), ("--max-tokens", "many"),
                                    ("--page-size", "0"), ("--max-seqs", "0"),
                                    ("--max-step-tokens", "0"), ("--step-timeout", "0"),
                                    ("--steps-ahead", "2"),
                                    ("--threads", "-1"), ("--seed", "-1"),
                                    ("--top-k", "few"), ("--kv-memory", "much", "512M"),
                                    ("--kv-memory", "-5", "512M"), ("--kv-memory", "9999999T"),
                                    ("--temperature", "hot")):
            with self.subTest(flag=flag, value=value):
                self.fail_usage([*RUN, f"{flag}={value}"], flag, value, *parts,
                                parallel=("--tp", "2"), ranks=value in ("nonsense", "much"))

    def test_sampling_out_of_range(self):
        self.fail_usage([*RUN, "--temperature", "-1"], "temperature", "expected", "-1")
        self.fail_usage([*RUN, "--temperature", "nan"], "temperature", "expected", ranks=False)
        self.fail_usage([*RUN, "--top-p", "0"], "top_p", "expected", ranks=False)
        self.fail_usage([*RUN, "--top-p", "1.01"], "top_p", "expected", "1.01", ranks=False)
        self.fail_usage([*RUN, "--top-k", "-1"], "top_k", "expected", "-1", ranks=False)

    def test_unknown_wires(self):
        self.fail_usage([*RUN, "--wire", "nonsense"], "--wire nonsense", "expected",
                        "auto, native, fp16", parallel=("--tp", "2"))
        self.fail_usage([*RUN, "--hop", "q4"], "--hop q4", "expected", ranks=False)
        self.fail_usage([*RUN, "--norm-codes", "7"], "--norm-codes 7", "expected", ranks=False)

    def test_wires_that_contradict_themselves(self):
        self.fail_usage([*RUN, "--wire", "exact", "--hop", "q8"], "--wire exact", "rounds nothing",
                        "--hop q8", parallel=("--tp", "2"), ranks=False)
        self.fail_usage([*RUN, "--wire", "one-shot-q7"], "--wire one-shot-q7", "expected",
                        ranks=False)

    def test_a_gpu_that_this_build_cannot_use(self):
        result = support.run(["check", "--json"])
        if result.lines[0]["cuda"]:
            self.skipTest("this build has CUDA")
        self.fail_usage([*RUN, "--device", "cuda"], "--device cuda", "no CUDA", "THINWIRE_CUDA=ON",
                        parallel=("--tp", "2"))

    def test_bench(self):
        self.fail_usage(["bench", "kernels", "--kernels", "gemm"], "gemm", "expected one of copy",
                        ranks=False)
        self.fail_usage(["bench", "kernels", "--width", "100"], "100", "multiple of 128",
                        ranks=False)
        self.fail_usage(["bench", "kernels", "--frobnicate"], "frobnicate", ranks=False)
        for length in ("--prompt-tokens", "--context"):
            self.fail_usage(["bench", "engine", "--model", OPT, length, 5000], length, "5000",
                            "context of")
        self.fail_usage(["bench", "engine", "--model", OPT, "--new-tokens", 512],
                        "a prompt of 1", "--new-tokens 512", "context of 512")
        self.fail_usage(["bench", "comm"], "expected several", "mpirun -np 2", ranks=False)
        self.fail_usage(["bench", "comm", "--min-bytes", "x"], "expected", ranks=False)

    def test_a_kv_cache_without_a_page(self):
        self.fail_alike([*RUN, "--kv-memory", "100"], 1, "100 bytes", "holds no page",
                        parallel=(), ranks=False)


class MeshTest(support.TestCase):
    """Ranks and sizes that do not fit each other or the model."""

    def test_more_ranks_wanted_than_there_are(self):
        result = support.run([*RUN, "--tp", "2"])
        self.check_error(result, 2, "--tp 2 --pp 1", "needs 2 ranks", "found 1", "mpirun -np 2")

    @support.needs_mpi
    def test_fewer_and_more_ranks_than_the_mesh(self):
        for ranks, flags in ((2, ["--tp", "2", "--pp", "2"]), (3, ["--pp", "2"]), (2, [])):
            result = support.run([*RUN, *flags], ranks=ranks)
            self.check_error(result, 2, "needs", f"found {ranks}", "--tp", "--pp")
            self.assertEqual(result.stdout, "")

    @support.needs_mpi
    def test_steps_ahead_of_several_stages_or_groups(self):
        for flags in (["--pp", "2"], ["--prefill-ranks", "1", "--decode-ranks", "1"]):
            result = support.run([*RUN, *flags, "--steps-ahead", "1"], ranks=2)
            self.check_error(result, 2, "--steps-ahead 1", "stages")

    @support.needs_mpi
    def test_heads_that_three_ranks_cannot_share(self):
        result = support.run([*RUN, "--tp", "3"], ranks=3)
        line = self.check_error(result, 1, "--tp 3", "4", "heads", "1, 2, 4")
        self.assertNotIn("rank 0", line)  # they all say so
        self.assertEqual(result.stdout, "")

    @support.needs_mpi
    @support.needs_models
    def test_eight_heads_that_three_ranks_cannot_share(self):
        model = support.larger_model("opt-mini")
        result = support.run(["run", "--model", model, "--prompt", "The", "--tp", "3"], ranks=3)
        self.check_error(result, 1, "--tp 3", "8", "heads", "1, 2, 4, 8")

    @support.needs_mpi
    def test_two_kv_heads_are_shared_by_four_ranks(self):
        args = ["run", "--model", LLAMA, "--prompt", "The", "--max-tokens", "8"]
        self.assertEqual(self.succeed([*args, "--tp", "4"], ranks=4).stdout,
                         self.succeed(args).stdout)

    @support.needs_mpi
    def test_more_stages_than_layers(self):
        result = support.run([*RUN, "--pp", "5"], ranks=5)
        self.check_error(result, 1, "--pp 5", "4", "layers")


class OutputTest(support.TestCase):

    def test_reports_that_cannot_be_written(self):
        self.fail_alike([*RUN, "--report", self.folder / "none" / "r.json"], 1,
                        self.folder / "none" / "r.json", "No such file")
        self.fail_alike([*RUN, "--report", self.folder], 1, self.folder, "expected a file",
                        ranks=False)
        file = self.write("file", "")
        self.fail_alike([*RUN, "--report", file / "r.json"], 1, file / "r.json", "Not a directory",
                        ranks=False)

    def test_a_report_onto_a_full_device(self):
        full = pathlib.Path("/dev/full")
        for ranks in (0, 2 if support.MPIEXEC else 0):
            result = support.run([*RUN, "--report", full, "--tp", max(ranks, 1)], ranks=ranks)
            self.check_error(result, 1, full, "No space left")
            self.assertTrue(stat.S_ISCHR(full.stat().st_mode))

    def test_a_report_onto_a_pipe(self):
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
            self.succeed([*RUN, "--report", f"/proc/{os.getpid()}/fd/{cat.stdin.fileno()}"])
            output, _ = cat.communicate()
        self.assertEqual(json.loads(output)["generated_tokens"], 4)

    def test_failed_runs_leave_no_report(self):
        report = self.folder / "r.json"
        self.fail_alike(["run", "--model", OPT, "--prompts", self.folder / "none", "--report",
                         report], 1, "none", ranks=False)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_standard_output_onto_a_full_device(self):
        text = self.write("text.txt", "Once upon a time. " * 40)
        prompts = self.write("p.jsonl", [{"token_ids": [5, i]} for i in range(20)])
        for args in ([*RUN], [*RUN, "--json"],
                     ["run", "--model", OPT, "--prompts", prompts, "--max-tokens", "2"],
                     ["eval", "--model", OPT, "--text", text, "--window", "16"],
                     ["inspect", OPT], ["check"]):
            with self.subTest(args=args), open("/dev/full", "wb") as full:
                result = support.run(args, stdout=full)
                self.check_error(result, 1, "standard output", "No space left")

    def test_help_onto_a_full_device(self):
        with open("/dev/full", "wb") as full:
            self.check_error(support.run(["--help"], stdout=full), 1, "standard output",
                             "No space left")

    def test_a_reader_that_leaves_ends_the_run(self):
        # As `thinwire run ... | head -1`. Not ended, this run would take hours.
        prompts = self.write("p.jsonl", [{"token_ids": [5, i % 1000]} for i in range(200000)])
        for args in (["run", "--model", OPT, "--prompts", prompts, "--json", "--max-tokens", "4"],
                     ["run", "--model", OPT, "--prompts", prompts, "--max-tokens", "4"]):
            for flags in ([], ["--max-seqs", "1"]):
                with self.subTest(args=args):
                    self.check_reader_leaves([*args, *flags])

    @support.needs_mpi
    def test_a_reader_that_leaves_ends_the_run_of_several_stages(self):
        # mpirun stands between the ranks and the reader: it notices, or the program does.
        prompts = self.write("p.jsonl", [{"token_ids": [5, i % 1000]} for i in range(200000)])
        args = ["run", "--model", OPT, "--prompts", prompts, "--json", "--max-tokens", "4"]
        with open("/dev/full", "wb") as full:
            # What mpirun cannot write is lost to the program, so let rank 0 write by itself.
            script = self.write("run.sh", '[ "$OMPI_COMM_WORLD_RANK" = 0 ] && exec "$@" >/dev/full'
                                '\nexec "$@"\n')
            with support.Running(args, stdout=full) as running:
                self.check_error(running.wait(), 1, "standard output")
            command = [support.MPIEXEC, "--oversubscribe", "-np", "4", "sh", script,
                       *support.command_line(args), "--tp", "2", "--pp", "2"]
            with support.Running([], command=command) as running:
                self.check_error(running.wait(), 1, "standard output", "No space left")

    def check_reader_leaves(self, args):
        read, write = os.pipe()
        with open(read, "rb") as reader:
            with support.Running(args, stdout=write) as running:
                os.close(write)
                self.assertNotEqual(reader.readline(), b"")
                reader.close()
                self.check_error(running.wait(), 1, "standard output", "Broken pipe")


if __name__ == "__main__":
    support.main()
