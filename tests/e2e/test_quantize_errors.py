"""What cannot be quantised, and what is no quantised model: one line on every rank says why, and
nothing is left half-written."""

import json
import struct

import support
from support import LLAMA, OPT, Safetensors, contents, edit_json, partial

SCHEME = ("--scheme", "w4a8")
HALF_NAN = struct.pack("<e", float("nan"))
HALF_INFINITE = struct.pack("<e", float("inf"))


class QuantizeErrorTest(support.QuantizeTestCase):

    def fail_quantize(self, *parts, model=OPT, flags=(), exit_code=1, calib=None,
                      ranks=True):
        """Quantising fails in the same words on one rank and on two, and leaves nothing."""
        out = self.folder / "out"
        line = self.fail_alike(self.quantize_args(model, out, *SCHEME, *flags, calib=calib),
                               exit_code, *parts, parallel=(), ranks=ranks)
        self.assertFalse(out.exists())
        self.assertFalse(partial(out).exists())
        return line


class CalibrationTest(QuantizeErrorTest):

    def test_too_short(self):
        text = self.write("short.txt", "Too short by far. " * 10)
        self.fail_quantize(text, "expected 4", "windows of 64", "--nsamples", calib=text)

    def test_empty(self):
        text = self.write("empty.txt", "")
        self.fail_quantize(text, "0 tokens", "expected 4", calib=text)

    def test_missing(self):
        text = self.folder / "missing.txt"
        self.fail_quantize(text, "No such file", calib=text)

    def test_a_folder(self):
        self.fail_quantize(self.folder, calib=self.folder)

    def test_no_utf8(self):
        text = self.write("latin.txt", "Zürich ".encode("latin-1") * 1000)
        self.fail_quantize(text, "UTF-8", calib=text)

    def test_ids_beyond_the_model(self):
        model = self.copy_model()
        value = json.loads((model / "tokenizer.json").read_text())
        vocabulary = value["model"]["vocab"]
        name = next(name for name, token in vocabulary.items() if name == "e")
        vocabulary[name] = 5000
        (model / "tokenizer.json").write_text(json.dumps(value))
        self.fail_quantize(self.calibration.name, "5000", "expected 0 to 1023", model=model)

    def test_windows_longer_than_the_context(self):
        for calib in (None, "self"):
            self.fail_quantize("--seqlen", "context", "expected at most", "512", "found 513",
                               flags=("--seqlen", 513), calib=calib)


class FlagsTest(QuantizeErrorTest):

    def test_nothing_to_do(self):
        args = self.quantize_args(OPT, self.folder / "out")
        self.fail_alike(args, 2, "nothing to quantise", "expected --scheme", parallel=())

    def test_values_that_are_none(self):
        for flags in (("--scheme", "w5a5"), ("--scheme", ""), ("--group-size", 0),
                      ("--group-size", -2), ("--nsamples", 0), ("--seqlen", 1), ("--seed", -1),
                      ("--tp", 0), ("--threads", -1)):
            with self.subTest(flags=flags):
                self.fail_quantize(flags[0], flags[1], flags=flags, exit_code=2,
                                   ranks=flags[0] == "--scheme")

    def test_a_scheme_by_name_and_by_parts(self):
        self.fail_quantize("--scheme", "--kv", flags=("--kv", 4), exit_code=2, ranks=False)

    def test_parts_that_are_none(self):
        for flags in (("--weights", "int4"), ("--acts", 5), ("--kv", 2)):
            args = self.quantize_args(OPT, self.folder / "out", *flags)
            self.check_error(support.run(args), 2, *flags)

    def test_no_folder_to_make(self):
        args = self.quantize_args(OPT, "", *SCHEME)
        self.check_error(support.run(args), 2, "--out", "expected")

    def test_blocks_that_do_not_divide(self):
        self.fail_quantize("--tp", "1, 2, 4", "found 3", flags=("--tp", 3))
        self.fail_quantize("--tp", "1, 2, 4", "found 8", flags=("--tp", 8), model=LLAMA,
                           ranks=False)


class FolderTest(QuantizeErrorTest):

    def test_a_folder_that_exists(self):
        for name in ("folder", "file"):
            out = self.folder / name
            if name == "folder":
                out.mkdir()
                (out / "kept").write_text("kept")
            else:
                out.write_text("kept")
            self.fail_alike(self.quantize_args(OPT, out, *SCHEME), 1, out, "exists already",
                            "expected", parallel=())
            self.assertFalse(partial(out).exists())
        self.assertEqual((self.folder / "folder" / "kept").read_text(), "kept")

    def test_the_model_s_own_folder(self):
        model = self.copy_model()
        before = contents(model)
        self.check_error(support.run(self.quantize_args(model, model, *SCHEME)), 1, model,
                         "exists already")
        self.assertEqual(contents(model), before)

    def test_a_parent_that_is_a_file(self):
        out = self.write("file", "") / "out"
        self.fail_alike(self.quantize_args(OPT, out, *SCHEME), 1, partial(out), parallel=())

    def test_a_partial_folder_of_something_else(self):
        # Its owner is asked before anything of it is touched.
        out = self.folder / "out"
        partial(out).mkdir()
        (partial(out) / "thinwire.json").write_text("{}")
        (partial(out) / "kept").write_text("kept")
        self.fail_alike(self.quantize_args(OPT, out, *SCHEME), 1,
                        partial(out) / "thinwire.json", "format_version", "expected", parallel=())
        self.assertEqual((partial(out) / "kept").read_text(), "kept")


class ModelTest(QuantizeErrorTest):

    def setUp(self):
        super().setUp()
        self.model = self.copy_model()
        self.weights = Safetensors(self.model / "model.safetensors")

    def set_element(self, tensor, index, value):
        """Puts the two bytes `value` at an index of a half-precision tensor."""
        begin, _ = self.weights.header[tensor]["data_offsets"]
        self.put(begin + 2 * index, value)

    def set_row(self, tensor, row, value):
        """Sets a row (of a vector: an element), or all of a tensor where `row` is None."""
        info = self.weights.header[tensor]
        begin, end = info["data_offsets"]
        if row is not None:
            row_bytes = (end - begin) // info["shape"][0]
            begin, end = begin + row * row_bytes, begin + (row + 1) * row_bytes
        self.put(begin, struct.pack("<e", value) * ((end - begin) // 2))

    def put(self, begin, value):
        data = self.weights.data
        self.weights.data = data[:begin] + value + data[begin + len(value):]

    def test_no_model(self):
        self.fail_quantize(self.folder / "nowhere", model=self.folder / "nowhere")

    def test_a_model_that_is_quantised_already(self):
        for flags in (("--scheme", "w4a16"), ("--kv", 4)):
            model = self.quantize(OPT, *flags, name=f"quantised{flags[1]}")
            self.fail_quantize(model, "quantised already", "expected the original", model=model)

    def test_a_weight_that_is_no_number(self):
        tensor = "model.decoder.layers.0.self_attn.k_proj.weight"
        self.set_element(tensor, 128 * 3 + 5, HALF_NAN)
        self.weights.save()
        self.fail_quantize("layer 0", "self_attn.k_proj.weight [3, 5]", "nan", "expected a finite",
                           model=self.model)

    def test_an_infinite_weight_of_a_later_layer(self):
        # Known before the layers before it are worked on.
        tensor = "model.decoder.layers.2.fc2.weight"
        self.set_element(tensor, 512 * 7 + 1, HALF_INFINITE)
        self.weights.save()
        self.fail_quantize("layer 2", "fc2.weight [7, 1]", "inf", "expected a finite",
                           model=self.model)

    def test_a_bias_and_an_embedding_that_are_no_number(self):
        # What they spoil is named by layer and site.
        for tensor, site in (("model.decoder.layers.0.fc1.bias", "down_in"),
                             ("model.decoder.layers.0.self_attn_layer_norm.weight", "qkv_in"),
                             ("model.decoder.embed_positions.weight", "qkv_in")):
            with self.subTest(tensor=tensor):
                self.weights = Safetensors(OPT / "model.safetensors")
                self.weights.path = self.model / "model.safetensors"
                # Of position embeddings: two of padding are before the first.
                self.set_element(tensor, 128 * 2 if "embed" in tensor else 5, HALF_NAN)
                self.weights.save()
                self.fail_quantize("layer 0", f"activations of {site}", "nan",
                                   "expected a finite", model=self.model, ranks="fc1" in tensor)

    def test_activations_that_overflow(self):
        # As bf16 the weights can be 3e38, and sums over them infinite.
        for tensor, site in (("model.decoder.layers.1.fc1.weight", "down_in"),
                             ("model.decoder.layers.1.self_attn.out_proj.weight", "mlp_in")):
            with self.subTest(tensor=tensor):
                self.weights = Safetensors(OPT / "model.safetensors")
                self.weights.path = self.model / "model.safetensors"
                info = self.weights.header[tensor]
                begin, end = info["data_offsets"]
                info["dtype"] = "BF16"
                self.put(begin, b"\x61\x7f" * ((end - begin) // 2))
                self.weights.save()
                line = self.fail_quantize_differently(site)
                self.assertRegex(line, r"channel \d+ of token \d+")

    def fail_quantize_differently(self, site):
        """Ranks have other windows, so they may name another token."""
        for ranks in (2 if support.MPIEXEC else 0, 0):
            out = self.folder / f"{site}-{ranks}"
            args = self.quantize_args(self.model, out, *SCHEME)
            line = self.check_error(support.run(args, ranks), 1, "layer 1",
                                    f"activations of {site}", "expected a finite")
            self.assertFalse(out.exists())
            # What is done is done.
            self.assertEqual(len(list(partial(out).glob("model-*"))), 1)
        return line

    def test_constant_and_dead_channels_are_fine(self):
        layer = "model.decoder.layers.1."
        # Dead: a unit of the MLP, a channel after each norm, a head of values.
        for name in ("fc1.weight", "fc1.bias", "self_attn_layer_norm.weight",
                     "self_attn_layer_norm.bias", "final_layer_norm.weight",
                     "final_layer_norm.bias"):
            self.set_row(layer + name, 5, 0)
        for row in range(32):
            self.set_row(layer + "self_attn.v_proj.weight", row, 0)
            self.set_row(layer + "self_attn.v_proj.bias", row, 0)
        # Constant: another channel of the norm, a unit of the MLP, and one of keys.
        self.set_row(layer + "self_attn_layer_norm.weight", 9, 0)
        self.set_row(layer + "self_attn_layer_norm.bias", 9, 3)
        self.set_row(layer + "fc1.weight", 9, 0)
        self.set_row(layer + "fc1.bias", 9, 2)
        self.set_row(layer + "self_attn.k_proj.weight", 9, 0)
        self.set_row(layer + "self_attn.k_proj.bias", 9, 1)
        self.weights.save()
        original = self.perplexity(self.model)
        for scheme in ("w4a8", "w4a4", "w3a3kv"):
            out = self.quantize(self.model, "--scheme", scheme, name=scheme)
            self.assertLess(self.perplexity(out), 5 * original)

    def test_a_layer_of_nothing_but_zeros(self):
        for name in self.weights.header.keys() - {"__metadata__"}:
            if name.startswith("model.decoder.layers.1."):
                self.set_row(name, None, 0)
        self.weights.save()
        for scheme in ("w4a8", "w4a4", "w3a3kv"):
            out = self.quantize(self.model, "--scheme", scheme, name=scheme)
            self.assertLess(self.perplexity(out), 5 * self.perplexity(self.model))


class QuantisedModelTest(support.QuantizeTestCase):
    """Quantised folders that are damaged, or run as they cannot be."""

    @classmethod
    def setUpClass(cls):
        cls.made = None

    def setUp(self):
        super().setUp()
        # One for all tests of the class.
        if QuantisedModelTest.made is None:
            out = self.quantize(OPT, "--scheme", "w4a8", "--tp", 2)
            QuantisedModelTest.made = contents(out)
        self.model = self.folder / "model"
        self.model.mkdir()
        for name, content in self.made.items():
            (self.model / name).write_bytes(content)
        self.sites = self.model / "rptq.safetensors"
        self.made_by = self.model / "thinwire.json"

    def fail_run(self, *parts, exit_code=1, parallel=("--tp", "2"), ranks=True):
        return self.fail_alike(["run", "--model", self.model, "--prompt", "The", "--json"],
                               exit_code, *parts, parallel=parallel, ranks=ranks)

    def test_it_runs_as_it_is(self):
        self.succeed(["run", "--model", self.model, "--prompt", "The", "--max-tokens", 2])

    @support.needs_mpi
    def test_a_cut_through_clusters(self):
        result = support.run(["run", "--model", self.model, "--prompt", "The", "--tp", "4"],
                             ranks=4)
        self.check_error(result, 1, self.model, "--tp", "expected one of 1, 2", "found 4")
        self.assertEqual(result.stdout, "")

    @support.needs_mpi
    def test_a_cut_of_one_block(self):
        model = self.quantize(OPT, "--acts", 8, "--tp", 1, name="one-block")
        result = support.run(["run", "--model", model, "--prompt", "The", "--tp", "2"], ranks=2)
        self.check_error(result, 1, model, "--tp", "expected one of 1,", "found 2")
        self.succeed(["run", "--model", model, "--prompt", "The", "--pp", "2"], ranks=2)

    @support.needs_mpi
    def test_any_cut_where_only_keys_and_values_have_codes(self):
        model = self.quantize(OPT, "--kv", 4, name="kv")
        self.succeed(["run", "--model", model, "--prompt", "The", "--tp", "4"], ranks=4)

    def test_no_sites(self):
        self.sites.unlink()
        self.fail_run(self.sites, "No such file")

    def test_no_account_of_how_it_was_made(self):
        self.made_by.unlink()
        self.fail_run(self.made_by)

    def test_truncated_sites(self):
        whole = self.sites.read_bytes()
        for length in (0, 5, 300, len(whole) // 2, len(whole) - 1):
            self.sites.write_bytes(whole[:length])
            self.fail_run(self.sites, "expected", ranks=length == 300)

    def test_sites_of_other_types_and_shapes(self):
        name = "layers.1.down_in.order"
        for change in ({"dtype": "F32"}, {"dtype": "U8"}, {"shape": [256, 2]}, {"shape": [511]}):
            self.sites.write_bytes(self.made["rptq.safetensors"])
            file = Safetensors(self.sites)
            file.header[name].update(change)
            file.save()
            self.fail_run(self.sites, name, "expected", ranks="dtype" in change)

    def test_sites_that_are_missing_or_unknown(self):
        for old, new in (("layers.1.down_in.order", "layers.1.down_in.other"),
                         ("layers.1.k.step", "layers.9.k.step")):
            self.sites.write_bytes(self.made["rptq.safetensors"])
            file = Safetensors(self.sites)
            file.header[new] = file.header.pop(old)
            file.save()
            line = self.fail_run(self.sites)
            self.assertTrue(old in line or new in line, line)

    def test_sites_that_make_no_sense(self):
        for name, index, value in (("layers.0.qkv_in.order", 0, struct.pack("<i", -1)),
                                   ("layers.0.qkv_in.order", 0, struct.pack("<i", 1 << 20)),
                                   ("layers.2.v.offsets", 1, struct.pack("<i", 1 << 20)),
                                   ("layers.3.k.step", 2, struct.pack("<f", -1)),
                                   ("layers.3.k.zero", 2, struct.pack("<f", float("nan")))):
            self.sites.write_bytes(self.made["rptq.safetensors"])
            file = Safetensors(self.sites)
            begin, _ = file.header[name]["data_offsets"]
            data = bytearray(file.data)
            data[begin + 4 * index:begin + 4 * index + 4] = value
            file.data = bytes(data)
            file.save()
            self.fail_run(self.sites, name.split(".")[1], name.split(".")[2], "expected",
                          ranks=name == "layers.3.k.step")

    def test_sites_of_a_newer_format(self):
        file = Safetensors(self.sites)
        file.header["__metadata__"]["format"] = "thinwire-rptq-2"
        file.save()
        self.fail_run(self.sites, "thinwire-rptq-2", "expected", "thinwire-rptq-1")

    def test_sites_of_another_model(self):
        other = self.quantize(LLAMA, "--scheme", "w4a8", name="llama")
        self.sites.write_bytes((other / "rptq.safetensors").read_bytes())
        self.fail_run(self.sites, "expected")

    def test_sites_of_other_blocks_than_it_says(self):
        edit_json(self.made_by, tp=4)
        self.fail_run(self.made_by, self.sites, "tp 4", "for 2", ranks=False)

    def test_a_truncated_account(self):
        whole = self.made_by.read_bytes()
        for length in (0, 1, 100):
            self.made_by.write_bytes(whole[:length])
            self.fail_run(self.made_by, "JSON", ranks=length == 100)

    def test_an_account_of_wrong_types(self):
        for field, value in (("scheme", 4), ("scheme", "w5a5"), ("weight_bits", "four"),
                             ("act_bits", 4), ("kv_bits", None), ("group_size", 0),
                             ("algorithm", "guess"), ("tp", -1), ("tp", "two"), ("seed", -5),
                             ("format_version", "1"), ("first_token_exact", 1),
                             ("calibration", [])):
            with self.subTest(field=field, value=value):
                self.made_by.write_bytes(self.made["thinwire.json"])
                edit_json(self.made_by, **{field: value})
                self.fail_run(self.made_by, field, ranks=field == "algorithm")

    def test_an_account_of_a_newer_version(self):
        edit_json(self.made_by, format_version=2)
        self.fail_run(self.made_by, "format_version", "expected at most 1", "found 2", "newer")

    def test_an_account_that_is_no_object(self):
        self.made_by.write_text("[]")
        self.fail_run(self.made_by, "expected an object")

    def test_an_account_of_other_weights(self):
        edit_json(self.made_by, scheme="w3a8", weight_bits=3)
        self.fail_run(self.made_by, self.model / "config.json", "3 bits", "4", ranks=False)

    def test_weights_that_miss_a_part(self):
        file = Safetensors(self.model / "model-00002-of-00005.safetensors")
        name = "model.decoder.layers.1.fc1.scales"
        file.header["unknown"] = file.header.pop(name)
        file.save()
        self.fail_run(self.model, name)


if __name__ == "__main__":
    support.main()
