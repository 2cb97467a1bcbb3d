"""Ranks on GPUs: the CPU's answers on every mesh and wire, quantising, and ranks that are lost or
misplaced. Ranks share a GPU where there is but one, but not those that are lost."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
import unittest

import support
import test_vptq
from support import LLAMA, OPT, contents
from test_split import SPLITS, split_flags

PROMPTS = [{"id": str(i), "token_ids": [5, 17 * i + 3, 40 + i]} for i in range(6)]
STEP_TIMEOUT_S = 4
BOUND_S = 10
# gpu_fault.cu of tests/support.
FAULT_LIBRARY = os.environ.get("THINWIRE_GPU_FAULT_LIBRARY", "")


def num_gpus():
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


needs_gpu = unittest.skipUnless(num_gpus(), "no GPU")
needs_two_gpus = unittest.skipUnless(num_gpus() >= 2, "fewer than two GPUs")


def shared(flags, ranks):
    """`flags`, and that ranks may share a GPU where there are fewer."""
    return [*flags, *["--share-gpus"] * (ranks > num_gpus())]


@support.needs_mpi
@needs_gpu
class GpuMeshTest(support.TestCase):

    def tokens(self, model, *flags, ranks=0):
        prompts = self.write("prompts.jsonl", PROMPTS)
        result = self.succeed(["run", "--model", model, "--prompts", prompts, "--json",
                               "--max-tokens", 24, "--ignore-eos", *flags], ranks)
        return {line["id"]: line["token_ids"] for line in result.lines}

    def test_every_mesh_answers_as_the_cpu_does(self):
        for model in (OPT, LLAMA):
            expected = self.tokens(model, "--device", "cpu")
            for flags, ranks in (((), 1), (("--tp", 2), 2), (("--pp", 2), 2),
                                 (("--tp", 2, "--pp", 2), 4)):
                with self.subTest(model=model.name, flags=flags):
                    flags = ("--device", "cuda", *shared(flags, ranks))
                    self.assertEqual(self.tokens(model, *flags, ranks=ranks), expected)
                    self.assertEqual(self.tokens(model, "--no-cuda-graphs", *flags, ranks=ranks),
                                     expected)
                    self.assertEqual(self.tokens(model, "--steps-ahead", 0, *flags, ranks=ranks),
                                     expected)

    def test_vector_quantised_models_answer_as_the_cpu_does(self):
        for source in (OPT, LLAMA):
            model = self.folder / f"vptq-{source.name}"
            test_vptq.quantized(source, model, self.folder / f"dense-{source.name}",
                                test_vptq.SPECS + test_vptq.TABLE_SPECS)
            expected = self.tokens(model, "--device", "cpu")
            for flags, ranks in (((), 1), (("--tp", 2), 2), (("--pp", 2), 2)):
                with self.subTest(model=source.name, flags=flags):
                    self.assertEqual(self.tokens(model, "--device", "cuda", *shared(flags, ranks),
                                                 ranks=ranks), expected)

    def test_coded_wires_answer_as_on_cpus(self):
        for wire in ("fp16", "one-shot-q8", "token-owner-q8"):
            with self.subTest(wire=wire):
                flags = ("--tp", 2, "--wire", wire)
                self.assertEqual(self.tokens(LLAMA, "--device", "cuda", *shared(flags, 2), ranks=2),
                                 self.tokens(LLAMA, "--device", "cpu", *flags, ranks=2))

    @needs_two_gpus
    def test_gpus_are_the_default_where_there_are_enough(self):
        run = ["run", "--model", OPT, "--prompt", "The", "--max-tokens", 2]
        self.assertNotIn("on the CPU", self.succeed([*run, "--tp", 2], ranks=2).stderr)
        alone = self.succeed([*run, "--tp", 2], ranks=2, env={"CUDA_VISIBLE_DEVICES": "0"})
        self.assertIn("on the CPU: ranks 0 and 1", alone.stderr)


@support.needs_mpi
@needs_two_gpus
class GpuQuantizeTest(support.QuantizeTestCase):

    def test_two_ranks_make_what_one_does(self):
        for model, flags in ((OPT, ("--scheme", "w4a4kv")), (LLAMA, ("--weights", "vptq-v4-k256"))):
            with self.subTest(model=model.name, flags=flags):
                alone, again, two = (
                    contents(self.quantize(model, *flags, "--device", "cuda", ranks=ranks,
                                           name=f"{model.name}-{name}"))
                    for name, ranks in (("alone", 1), ("again", 1), ("two", 2)))
                self.assertEqual(again, alone)
                self.assertEqual(two, alone)


@support.needs_mpi
@needs_gpu
class GpuSplitTest(support.QuantizeTestCase):
    """Jobs of a group that prefills and one that decodes."""

    # Of several pages, and of less than one.
    PROMPTS = [{"id": str(i), "token_ids": [(37 * i + 11 * j) % 97 for j in range(1 + 19 * i)],
                "max_tokens": 4 + 5 * i} for i in range(8)]

    def answers(self, model, *flags, ranks=0):
        """(Tokens by prompt, what of K and V was sent.)"""
        prompts = self.write("prompts.jsonl", self.PROMPTS)
        report = self.folder / "report.json"
        result = self.succeed(["run", "--model", model, "--prompts", prompts, "--json",
                               "--ignore-eos", "--report", report, *flags], ranks)
        sent = json.loads(report.read_text())["wire"]["sites"].get("kv_handoff", {})
        return ({line["id"]: line["token_ids"] for line in result.lines},
                [sent.get(key) for key in ("logical_bytes", "payload_bytes", "metadata_bytes")])

    def test_answers_are_the_cpus_and_those_of_one_group(self):
        for model in (OPT, LLAMA):
            expected, _ = self.answers(model, "--device", "cpu")
            self.assertEqual(self.answers(model, "--device", "cuda")[0], expected)
            for split in SPLITS:
                ranks = split[0] + split[1]
                flags = shared(split_flags(*split), ranks)
                with self.subTest(model=model.name, split=split):
                    tokens, sent = self.answers(model, "--device", "cuda", *flags, ranks=ranks)
                    self.assertEqual(tokens, expected)
                    cpu = self.answers(model, "--device", "cpu", *split_flags(*split), ranks=ranks)
                    self.assertEqual(sent, cpu[1])

    def test_codes_are_handed_over_as_they_are(self):
        for model in (OPT, LLAMA):
            quantized = self.quantize(model, "--scheme", "w4a4kv", name=model.name)
            expected, _ = self.answers(quantized, "--device", "cpu")
            _, cpu = self.answers(quantized, "--device", "cpu", *split_flags(1, 1), ranks=2)
            for graphs in ((), ("--no-cuda-graphs",)):
                with self.subTest(model=model.name, graphs=graphs):
                    tokens, sent = self.answers(quantized, "--device", "cuda", *graphs,
                                                *shared(split_flags(1, 1), 2), ranks=2)
                    self.assertEqual(tokens, expected)
                    self.assertEqual(sent, cpu)


@support.needs_mpi
@needs_gpu
class GpuExactTest(support.QuantizeTestCase):
    """--wire exact: the same bits on every mesh of GPUs, in every batch."""

    MESHES = (((), 0), (("--max-step-tokens", 7, "--page-size", 5), 0), (("--tp", 2), 2),
              (("--pp", 2, "--no-cuda-graphs"), 2))
    FOUR_RANKS = (("--tp", 2, "--pp", 2), 4)

    def check(self, model, meshes, *dtype):
        expected = None
        for flags, ranks in meshes:
            with self.subTest(model=model.name, dtype=dtype, flags=flags):
                found = self.perplexity(model, "--device", "cuda", "--wire", "exact",
                                        "--max-tokens", 256, *dtype, *shared(flags, ranks),
                                        ranks=ranks)
                expected = found if expected is None else expected
                self.assertEqual(found, expected)

    def test_perplexity_has_the_same_bits_on_every_mesh(self):
        for model in (OPT, LLAMA):
            self.check(model, (*self.MESHES, self.FOUR_RANKS))
            self.check(model, self.MESHES, "--dtype", "fp16")

    def test_perplexity_of_codes_has_the_same_bits_on_every_mesh(self):
        for model in (OPT, LLAMA):
            for scheme in ("w4a16", "w4a8", "w4a4kv"):
                self.check(self.quantize(model, "--scheme", scheme, name=f"{model.name}-{scheme}"),
                           self.MESHES)
            vptq = self.folder / f"vptq-{model.name}"
            test_vptq.quantized(model, vptq, self.folder / f"dense-{model.name}", test_vptq.SPECS)
            self.check(vptq, self.MESHES)

    def test_tokens_of_dense_models_are_the_cpus(self):
        prompts = self.write("prompts.jsonl", PROMPTS)
        for model in (OPT, LLAMA):
            run = ["run", "--model", model, "--prompts", prompts, "--json", "--max-tokens", 24,
                   "--ignore-eos", "--wire", "exact"]
            expected = self.succeed([*run, "--device", "cpu"]).lines
            for flags, ranks in (*self.MESHES, self.FOUR_RANKS):
                with self.subTest(model=model.name, flags=flags):
                    found = self.succeed([*run, "--device", "cuda", *shared(flags, ranks)], ranks)
                    self.assertEqual(found.lines, expected)


@support.needs_mpi
@needs_two_gpus
class GpuFaultTest(support.TestCase):

    ENDLESS = [{"id": i, "token_ids": [5, i % 1000], "max_tokens": 400} for i in range(20000)]

    def test_a_shared_gpu_is_refused(self):
        result = support.run(["run", "--model", OPT, "--prompt", "The", "--tp", 2, "--device",
                              "cuda"], ranks=2, env={"CUDA_VISIBLE_DEVICES": "0"})
        self.check_error(result, 1, "ranks 0 and 1", "would share a GPU", "--share-gpus")

    def test_too_little_memory_says_for_what(self):
        result = support.run(["run", "--model", OPT, "--prompt", "The", "--tp", 2, "--device",
                              "cuda", "--kv-memory", "4T"], ranks=2)
        self.check_error(result, 1, "KV cache of", "free", "out of memory")

    @unittest.skipUnless(FAULT_LIBRARY, "THINWIRE_GPU_FAULT_LIBRARY names no library")
    def test_a_kernel_that_faults_ends_the_job_with_a_reason(self):
        prompts = self.write("endless.jsonl", self.ENDLESS)
        for flags, ranks in (((), 0), (("--tp", 2), 2)):
            with self.subTest(flags=flags):
                fault = pathlib.Path(prompts).with_name(f"fault{ranks}")
                env = {"LD_PRELOAD": FAULT_LIBRARY, "THINWIRE_GPU_FAULT": str(fault)}
                with support.Running(["run", "--model", OPT, "--prompts", prompts, "--json",
                                      "--ignore-eos", "--device", "cuda", *flags], ranks=ranks,
                                     env=env) as running:
                    self.wait_for_output(running)
                    fault.touch()
                    result = self.end_in_time(running)
                self.assertIn("illegal memory access", result.stderr)

    def wait_for_output(self, running):
        give_up = time.monotonic() + support.TIMEOUT_S
        while not running.output()[0]:
            self.assertLess(time.monotonic(), give_up, running.result())
            time.sleep(0.05)

    def end_in_time(self, running):
        start = time.monotonic()
        result = running.wait(start - running.start + support.TIMEOUT_S)
        self.assertLess(time.monotonic() - start, BOUND_S, result)
        self.assertNotEqual(result.exit_code, 0, result)
        return result

    def check(self, number, *mesh):
        prompts = self.write("endless.jsonl", self.ENDLESS)
        with support.Running(["run", "--model", OPT, "--prompts", prompts, "--json",
                              "--ignore-eos", "--device", "cuda", *mesh, "--step-timeout",
                              STEP_TIMEOUT_S], ranks=2) as running:
            self.wait_for_output(running)
            os.kill(running.rank_process(1), number)
            return self.end_in_time(running)

    def test_a_killed_rank_ends_the_job(self):
        self.check(signal.SIGKILL, "--tp", 2)

    def test_a_rank_that_hangs_ends_the_job_with_a_reason(self):
        for mesh in (("--tp", 2), ("--pp", 2), split_flags(1, 1)):
            with self.subTest(mesh=mesh):
                self.assertTrue(self.check(signal.SIGSTOP, *mesh).errors)


if __name__ == "__main__":
    support.main()
