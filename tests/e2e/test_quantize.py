"""thinwire quantize, and what it makes: every scheme, every mesh, the same bytes every time."""

import json
import math
import os
import pathlib
import re
import signal
import time

import support
from support import LLAMA, OPT, Safetensors, contents, partial

PROMPTS = [{"prompt": "The king of the city said that"}, {"prompt": "In the year"},
           {"token_ids": [2] + [300 + 7 * i for i in range(100)]}, {"token_ids": [5]},
           *({"token_ids": [2, 300 + i]} for i in range(16))]

# Flags, the weights' bits, and how many times the perplexity of the original is enough. Loose: a
# model of 128 channels has nothing to spare, and half a licence is no text to calibrate on; a
# model that is broken guesses one of 1024 tokens, ten times as bad.
SCHEMES = {
    "w4a16": (("--scheme", "w4a16"), 4, 2),
    "w4a8": (("--scheme", "w4a8"), 4, 2),
    "w4a4": (("--scheme", "w4a4"), 4, 4.5),
    "w4a4kv": (("--scheme", "w4a4kv"), 4, 2),
    "w4a3kv": (("--scheme", "w4a3kv"), 4, 4.5),
    "w3a3kv": (("--scheme", "w3a3kv"), 3, 4.5),
    "w16a16kv4": (("--weights", "fp16", "--kv", 4), 16, 2),
    "w16a8": (("--acts", 8, "--kv", 8), 16, 2),
    "w3a8kv4": (("--weights", "gptq3", "--acts", 8, "--kv", 4), 3, 4.5),
}


class SchemeTest(support.QuantizeTestCase):

    def generate(self, model, tp, pp, *flags):
        prompts = self.write("prompts.jsonl", PROMPTS)
        ranks = tp * pp if tp * pp > 1 else 0
        lines = self.succeed(["run", "--model", model, "--prompts", prompts, "--json",
                              "--max-tokens", 12, "--ignore-eos", "--threads", 1, "--tp", tp,
                              "--pp", pp, *flags], ranks).lines
        return [line["token_ids"] for line in lines]

    def check(self, model):
        original = self.perplexity(model)
        for i, (name, (flags, weight_bits, factor)) in enumerate(SCHEMES.items()):
            tp = 2 if i % 2 == 0 else 4
            with self.subTest(scheme=name, tp=tp):
                out = self.quantize(model, *flags, "--tp", tp, name=name)
                made_by = json.loads((out / "thinwire.json").read_text())
                self.assertEqual((made_by["weight_bits"], made_by["tp"], made_by["group_size"]),
                                 (weight_bits, tp, 32))
                config = json.loads((out / "config.json").read_text())
                if weight_bits == 16:
                    self.assertNotIn("quantization_config", config)
                else:
                    self.assertEqual(config["quantization_config"]["bits"], weight_bits)
                perplexity = self.perplexity(out)
                self.assertTrue(math.isfinite(perplexity))
                self.assertLess(perplexity, factor * original)
                if support.MPIEXEC:
                    self.check_meshes(out, perplexity, coded=name != "w4a16")
                    if name in ("w4a16", "w4a8", "w4a4", "w3a8kv4"):
                        self.check_exact(out)

    def check_exact(self, model):
        alone = self.generate(model, 1, 1, "--wire", "exact")
        for tp, pp in ((2, 1), (2, 2)):
            self.assertEqual(self.generate(model, tp, pp, "--wire", "exact"), alone)
        exact = [self.perplexity(model, "--wire", "exact", "--tp", tp, ranks=tp) for tp in (1, 2)]
        self.assertEqual(*exact)

    def check_meshes(self, model, perplexity, coded):
        alone = self.generate(model, 1, 1)
        cut = self.generate(model, 2, 1)
        # Stages hand on what one rank would go on with: not a bit differs.
        self.assertEqual(self.generate(model, 2, 2), cut)
        loss = math.log(self.perplexity(model, "--tp", 2, ranks=2) / perplexity)
        if not coded:
            self.assertEqual(cut, alone)
            self.assertLess(abs(loss), 1e-5)
            return
        # Ranks add parts of sums in another order, and a difference of 1e-7 may take an activation
        # over the boundary between two codes: a step of it, 1e-2 of its range with 8 bits. Of some
        # thousand codes of a token a few do so at random. That moves no perplexity by a hundredth
        # (what was seen is 5e-4), but may choose between two tokens that are as good as equal,
        # after which the texts differ.
        self.assertLess(abs(loss), 0.01)
        same = sum(a == b for one, other in zip(alone, cut, strict=True)
                   for a, b in zip(one, other, strict=True))
        self.assertGreater(same, 0.75 * sum(map(len, alone)))


class OptTest(SchemeTest):

    def test_every_scheme_on_every_mesh(self):
        self.check(OPT)


class LlamaTest(SchemeTest):

    def test_every_scheme_on_every_mesh(self):
        self.check(LLAMA)


class FolderTest(support.QuantizeTestCase):
    """What lies in the folder, whatever happened on the way."""

    FLAGS = ("--scheme", "w4a4")

    def test_nothing_is_quantised_where_nothing_is_to_be(self):
        out = self.quantize(OPT, "--scheme", "w16a16")
        self.assertEqual(self.perplexity(out), self.perplexity(OPT))

    def test_channels_may_stay_where_they_are(self):
        out = self.folder / "in-place"
        self.succeed([*self.quantize_args(LLAMA, out, "--scheme", "w4a8", "--tp", 2),
                      "--no-act-order"])
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        self.assertEqual((config["desc_act"], config["group_size"]), (False, 32))
        self.assertFalse(json.loads((out / "thinwire.json").read_text())["act_order"])
        self.assertLess(self.perplexity(out), 2 * self.perplexity(LLAMA))
        self.assertLess(self.perplexity(out, "--tp", 2, ranks=2), 2 * self.perplexity(LLAMA))

    def test_the_same_bytes_every_time(self):
        for model in (OPT, LLAMA):
            first = contents(self.quantize(model, *self.FLAGS, name=f"{model.name}-1"))
            self.assertIn("rptq.safetensors", first)
            self.assertFalse([name for name in first if "tmp" in name or "sha256" in name])
            # With other threads and another way to the folder.
            again = contents(self.quantize(model, *self.FLAGS, "--threads", 2,
                                           name=f"{model.name}-2/"))
            self.assertEqual(again, first)

    def test_all_files_of_the_model_come_along(self):
        out = self.quantize(OPT, *self.FLAGS)
        for file in OPT.iterdir():
            if not file.name.startswith(("golden", "model", "config.json")):
                self.assertEqual((out / file.name).read_bytes(), file.read_bytes())
        self.assertFalse((out / "golden.json").exists())

    def test_where_the_text_lies_does_not_matter(self):
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        copy = elsewhere / self.calibration.name
        copy.write_bytes(self.calibration.read_bytes())
        self.assertEqual(contents(self.quantize(OPT, *self.FLAGS, name="a")),
                         contents(self.quantize(OPT, *self.FLAGS, name="b", calib=copy)))

    def test_the_parent_of_the_folder_is_made(self):
        self.quantize(OPT, "--kv", 4, name="new/parent/out")

    @support.needs_mpi
    def test_several_ranks_make_what_one_makes_up_to_rounding(self):
        for model in (OPT, LLAMA):
            alone = self.quantize(model, *self.FLAGS, name=f"{model.name}-1")
            # Five ranks: one has no window.
            for ranks in (2, 5):
                together = self.quantize(model, *self.FLAGS, name=f"{model.name}-{ranks}",
                                         ranks=ranks)
                self.assertEqual((together / "thinwire.json").read_bytes(),
                                 (alone / "thinwire.json").read_bytes())
                # Sums over windows are added in another order: relative differences of 1e-16 of the
                # moments, in double, and of 1e-7 of what is stored. A code that lay next to a
                # boundary may fall to the other side, and take those after it along; few do.
                self.assertGreater(equal_share(alone, together), 0.98, (model.name, ranks))
                self.assertLess(abs(math.log(self.perplexity(together) / self.perplexity(alone))),
                                0.02, (model.name, ranks))


def equal_share(one, other):
    """The share of equal bytes of the weights' codes in two folders."""
    equal = count = 0
    for file in sorted(one.glob("model-*.safetensors")):
        first, second = Safetensors(file), Safetensors(other / file.name)
        for header in (first.header, second.header):  # errors differ in their last digits
            header.pop("__metadata__", None)
        assert first.header == second.header, file
        for name, info in first.header.items():
            if name.endswith(".qweight"):
                begin, end = info["data_offsets"]
                equal += sum(map(int.__eq__, first.data[begin:end], second.data[begin:end]))
                count += end - begin
    return equal / count


class ResumeTest(support.QuantizeTestCase):
    """A run that is killed goes on where it was."""

    # Long enough to be killed between the first layer and the last.
    WINDOWS = 8
    FLAGS = ("--scheme", "w4a4")

    def setUp(self):
        super().setUp()
        self.out = self.folder / "resumed"
        self.layer = partial(self.out) / "model-00001-of-00005.safetensors"

    def kill(self, *flags, ranks=0, layer=1, model=OPT, **kwargs):
        """Starts a quantisation and kills it when `layer` layers are done."""
        args = self.quantize_args(model, self.out, *self.FLAGS, *flags, **kwargs)
        wanted = partial(self.out) / f"model-0000{layer}-of-00005.safetensors"
        with support.Running(args, ranks) as running:
            while not wanted.exists():
                self.assertIsNone(running.process.poll(), running.result())
                time.sleep(0.002)
            for pid in running.processes():
                os.kill(pid, signal.SIGKILL)
            running.wait()
        self.assertFalse(self.out.exists())
        self.assertTrue(partial(self.out).exists())

    def resume(self, *flags, **kwargs):
        """The layers that were found, of the log, and the folder's contents."""
        args = self.quantize_args(OPT, self.out, *self.FLAGS, "--log-level", "info", *flags)
        result = self.succeed(args, **kwargs)
        self.assertFalse(partial(self.out).exists())
        return result.stderr.count("done by an earlier run"), contents(self.out)

    def test_a_killed_run_goes_on_and_makes_the_same(self):
        whole = contents(self.quantize(OPT, *self.FLAGS))
        for layer in (1, 3):
            self.kill(layer=layer)
            # As if it had been killed while it wrote the next.
            (partial(self.out) / "model-00004-of-00005.safetensors.tmp.17").write_bytes(b"half")
            found, folder = self.resume()
            self.assertGreaterEqual(found, layer)
            self.assertEqual(folder, whole)
            for file in self.out.iterdir():
                file.unlink()
            self.out.rmdir()

    def test_killed_while_it_finished(self):
        whole = contents(self.quantize(OPT, *self.FLAGS))
        self.kill(layer=3)
        # All layers are done, and the sites of some are in one file only.
        for name in whole.keys() - {"config.json", "tokenizer.json"}:
            (partial(self.out) / name).write_bytes(whole[name])
        for folder in sorted(partial(self.out).glob("sites-*"))[:2]:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        found, folder = self.resume()
        self.assertEqual(found, 4)
        self.assertEqual(folder, whole)

    @support.needs_mpi
    def test_ranks_go_on_where_one_was(self):
        self.kill()
        found, folder = self.resume(ranks=2)
        self.assertGreaterEqual(found, 1)
        self.assertIn("rptq.safetensors", folder)

    @support.needs_mpi
    def test_one_goes_on_where_ranks_were(self):
        self.kill(ranks=2)
        found, _ = self.resume()
        self.assertGreaterEqual(found, 1)

    def test_other_options_are_refused(self):
        self.kill()
        before = contents(partial(self.out))
        other_text = self.write("other.txt", self.evaluation.read_text())
        for flags, calib, parts in (
                (("--seed", 7), None, ("--seed 0", "now 7")),
                (("--scheme", "w4a8"), None, ("--scheme w4a4", "now w4a8")),
                (("--nsamples", 4), None, ("--nsamples 8", "now 4")),
                (("--seqlen", 32), None, ("--seqlen 64", "now 32")),
                (("--group-size", 64), None, ("--group-size 32", "now 64")),
                (("--tp", 2), None, ("--tp 4", "now 2")),
                ((), other_text, ("--calib calibration.txt", "now other.txt")),
                ((), "self", ("--calib calibration.txt", "now self"))):
            args = self.quantize_args(OPT, self.out, *self.FLAGS, *flags, calib=calib)
            self.fail_alike(args, 1, f"{partial(self.out)}: was begun with", *parts, "expected",
                            parallel=(), ranks=flags == ("--seed", 7))
        self.calibration.write_text(self.evaluation.read_text())
        args = self.quantize_args(OPT, self.out, *self.FLAGS)
        self.check_error(support.run(args), 1, "--calib calibration.txt", "changed")
        self.assertEqual(contents(partial(self.out)), before)
        self.assertFalse(self.out.exists())

    def test_another_model_of_the_same_shape_is_refused(self):
        self.kill()
        model = self.copy_model()
        file = Safetensors(model / "model.safetensors")
        file.data = bytes(len(file.data))
        file.save()
        self.check_error(support.run(self.quantize_args(model, self.out, *self.FLAGS)), 1,
                         partial(self.out), "--model", model)
        # The same one elsewhere is fine.
        args = self.quantize_args(self.copy_model(), self.out, *self.FLAGS)
        self.succeed(args)

    def test_a_damaged_layer_is_named(self):
        self.kill()
        self.layer.write_bytes(self.layer.read_bytes()[:1000])
        self.check_error(support.run(self.quantize_args(OPT, self.out, *self.FLAGS)), 1,
                         self.layer, "expected")
        self.layer.unlink()
        self.resume()


class SelfTest(support.QuantizeTestCase):
    """--calib self."""

    FLAGS = ("--scheme", "w4a8")

    def quantize_on_itself(self, model, *flags, **kwargs):
        return self.quantize(model, *self.FLAGS, *flags, calib="self", **kwargs)

    def test_a_model_calibrates_on_what_it_says(self):
        for model in (OPT, LLAMA):
            first = self.quantize_on_itself(model, name=f"{model.name}-1")
            made_by = json.loads((first / "thinwire.json").read_text())
            self.assertEqual(made_by["calibration"]["source"], "self")
            self.assertEqual((made_by["calibration"]["nsamples"], made_by["calibration"]["seqlen"]),
                             (self.WINDOWS, self.SEQLEN))
            again = self.quantize_on_itself(model, "--threads", 2, name=f"{model.name}-2")
            self.assertEqual(contents(again), contents(first))
            if support.MPIEXEC:
                ranks = self.quantize_on_itself(model, name=f"{model.name}-3", ranks=2)
                self.assertEqual((ranks / "thinwire.json").read_bytes(),
                                 (first / "thinwire.json").read_bytes())

    def test_it_is_as_good_as_a_text_of_the_model_s_kind(self):
        for model in (OPT, LLAMA):
            out = self.quantize_on_itself(model, "--nsamples", 32, name=model.name)
            self.assertLess(self.perplexity(out), 2 * self.perplexity(model))

    def test_the_text_depends_on_the_seed(self):
        digests = set()
        for seed in (0, 1, (1 << 53) - 1):
            out = self.quantize_on_itself(OPT, "--seed", seed, name=f"seed-{seed}")
            made_by = json.loads((out / "thinwire.json").read_text())
            self.assertEqual(made_by["seed"], seed)
            digests.add(made_by["calibration"]["sha256"])
        self.assertEqual(len(digests), 3)

    def test_no_text_and_no_tokenizer_is_needed(self):
        model = self.copy_model()
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            (model / name).unlink()
        self.quantize_on_itself(model)

    def test_a_file_of_that_name_is_a_path(self):
        path = self.write("self", self.calibration.read_text())
        out = self.quantize(OPT, *self.FLAGS, calib=path)
        source = json.loads((out / "thinwire.json").read_text())["calibration"]["source"]
        self.assertEqual(pathlib.Path(source), path)


class OutputTest(support.QuantizeTestCase):

    @support.needs_mpi
    def test_only_rank_0_prints(self):
        out = self.folder / "out"
        result = self.succeed(self.quantize_args(OPT, out, "--scheme", "w4a4kv", "--log-level",
                                                 "info"), ranks=2)
        self.assertEqual(len(result.stdout.splitlines()), 1, result)
        for layer in range(4):
            self.assertEqual(result.stderr.count(f"layer {layer}: "), 1, result)

    def test_the_last_line_says_what_was_done(self):
        out = self.folder / "out"
        result = self.succeed(self.quantize_args(OPT, out, "--scheme", "w4a4kv"))
        self.assertRegex(result.stdout, r": w4a4kv, calibrated on 4 x 64 tokens of calibration.txt;"
                         r" took \d+\.\d s and \d+\.\d MB\n$")

    def test_no_progress_into_files(self):
        out = self.folder / "out"
        result = self.succeed(self.quantize_args(OPT, out, "--kv", 4, calib="self"))
        self.assertNotIn("\r", result.stderr)
        self.assertNotIn("\033", result.stderr)

    def test_progress_on_a_terminal(self):
        for i, calib in enumerate((self.calibration, "self")):
            args = self.quantize_args(OPT, self.folder / f"out{i}", "--scheme", "w4a4",
                                      "--log-level", "info", calib=calib)
            screen, result = support.on_terminal(args)
            self.assertEqual(result.exit_code, 0, result)
            self.assertIn("quantising [", screen)
            self.assertIn("4/4", screen)
            self.assertEqual("making up text [" in screen, calib == "self")
            for line in re.split("\r\n|\n", screen):
                self.assertNotIn("quantising [", line.rsplit("\r\033[K", 1)[-1], screen)

    def test_help_teaches(self):
        text = self.succeed(["quantize", "--help"]).stdout
        for words in ("--model", "--out", "--scheme", "--weights", "--acts", "--kv", "--calib",
                      "--nsamples", "--seqlen", "--group-size", "--seed", "--tp", "--threads",
                      *list(SCHEMES)[:6], "self", "OUT.partial", "mpirun", "thinwire quantize"):
            self.assertIn(words, text)


if __name__ == "__main__":
    support.main()
