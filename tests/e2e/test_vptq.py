"""Models with vector-quantised layers, of a published folder's form, on one rank and on several."""

import json
import math
import os
import pathlib
import shutil
import signal
import struct
import sys
import time

import support
from support import LLAMA, OPT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))

import vptq_folders

# What a layer's projections are quantised as, in turns. Lengths of 6, 10 and 12 divide no rank's
# part; columns of outliers and groups are scattered over the ranks.
SPECS = [
    {"v": 6, "k": 256, "kr": 16, "groups": 1, "outliers": 0, "perm": None},
    {"v": 8, "k": 1024, "kr": 0, "groups": 2, "outliers": 0, "perm": "i16"},
    {"v": 12, "k": 512, "kr": 64, "groups": 1, "outliers": 8, "v0": 4, "k0": 64, "perm": "i16"},
    {"v": 4, "k": 256, "kr": 8, "groups": 4, "outliers": 4, "v0": 8, "k0": 32, "perm": None},
    {"v": 10, "k": 64, "kr": 4, "groups": 1, "outliers": 0, "perm": "i16"},
]
# Whose books GPUs keep in shared memory.
TABLE_SPECS = [
    {"v": 8, "k": 256, "kr": 256, "groups": 1, "outliers": 0, "perm": "i16"},
    {"v": 6, "k": 4096, "kr": 0, "groups": 1, "outliers": 0, "perm": None},
    {"v": 8, "k": 4096, "kr": 256, "groups": 1, "outliers": 0, "perm": None},
]


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    begin = 8 + size
    return {name: (info["dtype"], info["shape"],
                   data[begin + info["data_offsets"][0]:begin + info["data_offsets"][1]])
            for name, info in header.items()}


def is_projection(name, shape):
    return ".layers." in name and name.endswith(".weight") and len(shape) == 2


def spread(values):
    """Standard deviation."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def quantized(source, folder, dense, specs=SPECS):
    """Writes `source` with random vectors for its projections, as indices and as weights: models of
    no use but with activations of the usual size."""
    tensors, plain, modules = {}, {}, {}
    for name, (dtype, shape, data) in read_safetensors(source / "model.safetensors").items():
        if not is_projection(name, shape):
            tensors[name] = plain[name] = (dtype, shape, data)
            continue
        module = name.removesuffix(".weight")
        spec = {"v0": -1, "k0": -1, "norm": True, "layout": "packed", "dtype": "F16",
                **specs[len(modules) % len(specs)]}
        layer = vptq_folders.Layer(shape[0], shape[1], spec, seed=len(modules))
        scale = spread(struct.unpack(f"<{len(data) // 2}e", data)) / 1.5
        number = lambda value: vptq_folders.to_bits(value, "F16")
        layer.scale = [number(scale * (1 + i % 3)) for i in range(shape[1])]
        layer.offset = [number(scale * (i % 5 - 2) / 8) for i in range(shape[1])]
        tensors |= layer.tensors(module)
        modules[module] = layer.config()
        weights = [w for row in layer.dequantized() for w in row]
        plain[name] = ("F32", shape, struct.pack(f"<{len(weights)}f", *weights))
    for target, content in ((folder, tensors), (dense, plain)):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*", "golden*"))
        vptq_folders.write_safetensors(target / "model.safetensors", content)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "vptq", "config_for_layers": modules}
    (folder / "config.json").write_text(json.dumps(config))


class VptqTest(support.QuantizeTestCase):

    def tokens(self, model, tp=1, pp=1):
        result = self.succeed(["run", "--model", model, "--prompts", self.prompts, "--json",
                               "--threads", 1, "--tp", tp, "--pp", pp],
                              tp * pp if tp * pp > 1 else 0)
        return {line["id"]: line["token_ids"] for line in result.lines}

    def check(self, source):
        model, dense = self.folder / "vptq", self.folder / "dense"
        quantized(source, model, dense)
        self.prompts = self.write("prompts.jsonl", [
            {"id": str(i), "token_ids": [3 + 7 * i + j for j in range(4 + 20 * i)],
             "max_tokens": 12} for i in range(3)])
        expected = self.tokens(dense)
        self.assertEqual(self.tokens(model), expected)
        if support.MPIEXEC:
            for tp, pp in ((2, 1), (4, 1), (2, 2)):
                self.assertEqual(self.tokens(model, tp, pp), expected, f"{tp} x {pp}")
        self.check_shares(model)

    def check_shares(self, model):
        """A rank holds its part of the indices, and all codebooks."""
        found = {tp: json.loads(self.succeed(
            ["inspect", model, "--tp", tp, "--json"]).stdout) for tp in (1, 2)}
        linear = found[1]["linear"]
        self.assertGreater(linear["codebook_bits"], 0)
        whole, half = (found[tp]["rank"]["weight_bytes"] for tp in (1, 2))
        weights = read_safetensors(model / "model.safetensors")
        shared = sum(len(data) for name, (_, _, data) in weights.items()
                     if "centroids" in name or "norm" in name or "position" in name)
        self.assertGreater(half, whole / 2)
        self.assertLess(half, whole / 2 + shared)
        for tp in (1, 2) if support.MPIEXEC else (1,):
            report = self.folder / f"report-{tp}.json"
            self.succeed(["run", "--model", model, "--prompts", self.prompts, "--tp", tp,
                          "--report", report], tp if tp > 1 else 0)
            ranks = json.loads(report.read_text())["memory"]["ranks"]
            most = max(rank["weight_bytes"] for rank in ranks)
            # Norms and biases are held in fp32; a rank's columns lie unequally in the groups.
            self.assertAlmostEqual(found[tp]["rank"]["weight_bytes"] / most, 1.0, delta=0.02)

    def test_what_does_not_fit_together_is_named_at_load(self):
        model = self.folder / "vptq"
        quantized(OPT, model, self.folder / "dense")
        path = model / "model.safetensors"
        tensors = read_safetensors(path)
        module = "model.decoder.layers.2.self_attn.v_proj"
        dtype, shape, data = tensors[f"{module}.indices"]
        cut = (dtype, [*shape[:2], shape[2] - 1], data[:len(data) // shape[2] * (shape[2] - 1)])
        for part, tensor in (("indices", cut), ("centroids.weight", None)):
            changed = {name: value for name, value in tensors.items() if name != f"{module}.{part}"}
            if tensor is not None:
                changed[f"{module}.{part}"] = tensor
            vptq_folders.write_safetensors(path, changed)
            for ranks in (0, 2) if support.MPIEXEC else (0,):
                result = support.run(["run", "--model", model, "--prompt", "x", "--tp",
                                      max(1, ranks)], ranks)
                self.check_error(result, 1, f"{module}.{part}", "expected", "found")

    def test_opt(self):
        self.check(OPT)

    def test_llama(self):
        self.check(LLAMA)


class QuantizeToVectorsTest(support.QuantizeTestCase):
    """Folders that the program makes itself, in the published form."""

    WINDOWS = 64
    SEQLEN = 128

    def setUp(self):
        super().setUp()
        # As many tokens as the widest layer has inputs, some times over, and of no text that
        # somebody edits.
        self.calibration = "self"

    def evaluate_on_own_text(self, model):
        """Perplexity becomes that of what the model says, the only text that it knows here."""
        prompts = self.write("own.jsonl", [{"id": str(i), "token_ids": [300 + i], "seed": i,
                                            "temperature": 1.0, "max_tokens": 240}
                                           for i in range(24)])
        lines = self.succeed(["run", "--model", model, "--prompts", prompts, "--json",
                              "--ignore-eos", "--threads", 1]).lines
        self.evaluation = self.write("own.txt", "\n".join(line["text"] for line in lines))

    def tokens(self, model, tp, pp):
        prompts = self.write("prompts.jsonl", [{"id": "0", "token_ids": [5, 9, 300, 41, 7],
                                                "max_tokens": 16}])
        result = self.succeed(["run", "--model", model, "--prompts", prompts, "--json",
                               "--threads", 1, "--tp", tp, "--pp", pp],
                              tp * pp if tp * pp > 1 else 0)
        return [line["token_ids"] for line in result.lines]

    def test_results_are_reproducible_and_run_on_any_split(self):
        flags = ["--weights", "vptq-v4-k256", "--seed", 3, "--nsamples", 9, "--seqlen", 48]
        made = self.quantize(OPT, *flags)
        again = self.quantize(OPT, *flags, "--threads", 2, name="again")
        self.assertEqual(support.contents(made), support.contents(again))
        if support.MPIEXEC:
            for ranks in (2, 4):
                shared = self.quantize(OPT, *flags, name=f"by-{ranks}", ranks=ranks)
                self.assertEqual(support.contents(made), support.contents(shared), ranks)
        config = json.loads((made / "config.json").read_text())["quantization_config"]
        self.assertEqual(config["quant_method"], "vptq")
        self.assertEqual(len(config["config_for_layers"]), 24)
        shown = json.loads(self.succeed(["inspect", made, "--json"]).stdout)
        self.assertEqual(shown["scheme"], "vptq-v4-k256")
        self.assertAlmostEqual(shown["linear"]["codes_bits"], 2.0)
        if support.MPIEXEC:
            alone = self.tokens(made, 1, 1)
            for tp, pp in ((4, 1), (2, 2)):
                self.assertEqual(self.tokens(made, tp, pp), alone, f"{tp} x {pp}")

    def test_groups_outliers_and_codes_are_reproducible_and_run_on_any_split(self):
        flags = ["--weights", "vptq-v4-k64-g2-o3v2k64", "--acts", 8, "--kv", 4, "--nsamples", 9,
                 "--seqlen", 48]
        made = self.quantize(LLAMA, *flags)
        shown = json.loads(self.succeed(["inspect", made, "--json"]).stdout)
        self.assertEqual(shown["scheme"], "vptq-v4-k64-g2-o3v2k64-a8kv4")
        layer = json.loads((made / "config.json").read_text())["quantization_config"][
            "config_for_layers"]["model.layers.0.mlp.down_proj"]
        self.assertEqual((layer["outlier_size"], layer["group_num"], layer["group_size"]),
                         (12, 2, 170))
        if support.MPIEXEC:
            shared = self.quantize(LLAMA, *flags, name="by-4", ranks=4)
            self.assertEqual(support.contents(made), support.contents(shared))
            text = self.write("text.txt", "A text that ranks read alike. " * 40)
            perplexity = lambda tp: json.loads(self.succeed(
                ["eval", "--model", made, "--text", text, "--window", 64, "--tp", tp, "--json"],
                tp if tp > 1 else 0).stdout)["perplexity"]
            self.assertAlmostEqual(perplexity(2) / perplexity(1), 1.0, delta=0.01)

    def check_byte_books(self, folder):
        """Each place of a vector has 8-bit integers times a scale of 4 bits; how many there are."""
        modules = json.loads((folder / "config.json").read_text())["quantization_config"][
            "config_for_layers"]
        books = 0
        for path in folder.glob("model-*.safetensors"):
            for name, (_, (groups, size), data) in (
                    (name, tensor) for name, tensor in read_safetensors(path).items()
                    if name.endswith("centroids.weight")):
                module, part = name.removesuffix(".weight").rsplit(".", 1)
                length = modules[module]["vector_lens"][part != "outlier_centroids"]
                values = struct.unpack(f"<{groups * size}e", data)
                for first in range(0, groups * size, size):
                    for j in range(length):
                        units = [round(abs(v) * 2 ** 24)
                                 for v in values[first + j:first + size:length]]
                        common = math.gcd(*units) or 1
                        odd = common // (common & -common)
                        scale = common // odd * max(m for m in range(1, 16, 2) if odd % m == 0)
                        self.assertLessEqual(max(units), 127 * scale, (name, j))
                    books += 1
        return books

    def test_byte_books_are_that_everywhere_and_run_on_any_split(self):
        flags = ["--weights", "vptq-v4-k64-r16-g2-o3v2k64-c8", "--nsamples", 9, "--seqlen", 48]
        made = self.quantize(LLAMA, *flags)
        self.assertEqual(self.check_byte_books(made), 4 * 7 * (2 * 2 + 1))
        shown = json.loads(self.succeed(["inspect", made, "--json"]).stdout)
        self.assertEqual(shown["scheme"], "vptq-v4-k64-r16-g2-o3v2k64-c8")
        if support.MPIEXEC:
            shared = self.quantize(LLAMA, *flags, name="by-4", ranks=4)
            self.assertEqual(support.contents(made), support.contents(shared))
            self.assertEqual(self.tokens(made, 2, 2), self.tokens(made, 1, 1))

    def test_a_budget_is_kept_and_a_killed_run_goes_on(self):
        model = support.NANO_MODELS / "tiny-mistral"
        flags = ["--weights", "vptq", "--bits", 4.5, "--nsamples", 8, "--seqlen", 32]
        made = self.quantize(model, *flags, calib="self")
        linear = json.loads(self.succeed(["inspect", made, "--json"]).stdout)["linear"]
        self.assertGreater(linear["bits_per_weight"], 4.3)
        self.assertLessEqual(linear["bits_per_weight"], 4.5)
        report = json.loads((made / "quantize_report.json").read_text())["layers"]
        self.assertEqual(len(report), 3)
        shapes = {entry["weights"] for layer in report for entry in layer.values()}
        self.assertGreater(len(shapes), 1)
        self.assertTrue(all(0 < entry["relative_error"] < 0.1
                            for layer in report for entry in layer.values()), report)
        out = self.folder / "resumed"
        partial = pathlib.Path(f"{out}.partial")
        args = self.quantize_args(model, out, *flags, calib="self")
        with support.Running(args) as running:
            while not list(partial.glob("model-00001-*.safetensors")):
                self.assertIsNone(running.process.poll(), running.result())
                time.sleep(0.002)
            for pid in running.processes():
                os.kill(pid, signal.SIGKILL)
            running.wait()
        self.assertTrue((partial / "shapes.json").exists())
        self.succeed(args)
        self.assertEqual(support.contents(made), support.contents(out))
        if support.MPIEXEC:
            shared = self.quantize(model, *flags, calib="self", name="by-4", ranks=4)
            self.assertEqual(support.contents(made), support.contents(shared))

    def test_more_bits_lose_less_and_the_published_choices_more(self):
        self.evaluate_on_own_text(OPT)
        exact = self.perplexity(OPT)
        loss = lambda *flags, name: self.perplexity(
            self.quantize(OPT, *flags, name=name)) / exact - 1.0
        two = loss("--weights", "vptq-v4-k256", name="two")
        more = loss("--weights", "vptq-v4-k256-r16", name="more")
        published = loss("--weights", "vptq-v4-k256", "--vptq", "reference", name="published")
        self.assertLess(more, two)
        self.assertLess(two, published)

    def test_llama_with_coded_activations_and_cache(self):
        made = self.quantize(LLAMA, "--weights", "vptq-v2-k256", "--acts", 8, "--kv", 4)
        self.assertLess(self.perplexity(made), 1.5 * self.perplexity(LLAMA))

    def check_refined(self, plain, made):
        """Of one form; indices and embeddings the same bytes, codebooks not."""
        self.assertEqual(support.contents(plain).keys(), support.contents(made).keys())
        for path in plain.glob("model-*.safetensors"):
            before = read_safetensors(path)
            after = read_safetensors(made / path.name)
            for name, (dtype, shape, data) in before.items():
                self.assertEqual((dtype, shape), after[name][:2])
                if name.endswith((".indices", "embed_tokens.weight")):
                    self.assertEqual(data, after[name][2], name)
                elif ".centroids" in name:
                    self.assertNotEqual(data, after[name][2], name)

    def test_refinement_is_reproducible_and_loses_less(self):
        for source in (OPT, LLAMA):
            self.evaluate_on_own_text(source)
            flags = ["--nsamples", 16, "--seqlen", 64]
            if source == LLAMA:
                flags += ["--weights", "vptq-v4-k32-c8", "--acts", 8, "--kv", 4]
            else:
                flags += ["--weights", "vptq-v4-k32"]
            plain = self.quantize(source, *flags, name=f"plain-{source.name}")
            flags += ["--refine", 15]
            made = self.quantize(source, *flags, name=f"refined-{source.name}")
            if source == LLAMA:
                again = self.quantize(source, *flags, "--threads", 2, name="again")
                self.assertEqual(support.contents(made), support.contents(again))
                self.check_byte_books(made)
            self.assertEqual(json.loads((made / "thinwire.json").read_text())["refine_steps"], 15)
            self.check_refined(plain, made)
            self.assertLess(self.perplexity(made), self.perplexity(plain))

    def test_what_cannot_be_refined_is_named(self):
        result = support.run(self.quantize_args(OPT, self.folder / "none", "--weights", "gptq4",
                                                "--refine", 9))
        self.check_error(result, 1, "--refine", "vptq", "w4a16")

    def test_what_cannot_be_made_is_named(self):
        for flags, words in (
                (["--weights", "vptq-v4-k100"], ["--weights", "power of two", "vptq-v4-k100"]),
                (["--weights", "vptq-v17-k256"], ["vectors of 1 to 16"]),
                (["--weights", "vptq-b2.10"], ["--weights", "vptq-b2.10"]),
                (["--weights", "vptq"], ["--bits", "vptq"]),
                (["--weights", "gptq4", "--bits", 2.5], ["--bits", "gptq4"]),
                (["--weights", "vptq", "--bits", 2.5, "--vptq", "reference"],
                 ["--bits", "--vptq"]),
                (["--weights", "vptq-c8"], ["--bits", "vptq-c8"]),
                (["--weights", "vptq-v4-k16-c8", "--vptq", "reference"],
                 ["--vptq reference", "books of 8 bits"]),
                (["--weights", "vptq-v4-k16-c4"], ["--weights", "-c8", "vptq-v4-k16-c4"]),
                (["--weights", "gptq5"], ["--weights", "gptq5"]),
                (["--weights", "gptq4", "--vptq", "reference"], ["--vptq reference"])):
            result = support.run(self.quantize_args(OPT, self.folder / "none", *flags))
            self.check_error(result, 2, *words)


if __name__ == "__main__":
    support.main()
