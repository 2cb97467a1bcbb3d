"""Damaged model folders: one line names file and tensor and what was expected, on every rank."""

import json
import os
import shutil
import unittest

import support
from support import LLAMA, OPT, Safetensors, edit_json

# A tensor of opt-nano that --tp 2 cuts, and one that every rank has whole.
CUT = "model.decoder.layers.2.fc1.weight"
WHOLE = "model.decoder.final_layer_norm.weight"


class BadModel(support.TestCase):
    """Helpers: the damaged folder must fail `run`."""

    def fail_run(self, model, *parts, **kwargs):
        return self.fail_alike(["run", "--model", model, "--prompt", "The", "--json"], 1, *parts,
                               **kwargs)


class WeightsTest(BadModel):

    def setUp(self):
        super().setUp()
        self.model = self.copy_model()
        self.weights = self.model / "model.safetensors"

    def fail_weights(self, *parts, **kwargs):
        return self.fail_run(self.model, self.weights, *parts, **kwargs)

    def test_a_truncated_header(self):
        self.weights.write_bytes(self.weights.read_bytes()[:200])
        self.fail_weights("expected")

    def test_a_file_of_no_bytes(self):
        self.weights.write_bytes(b"")
        self.fail_weights("expected")

    def test_a_file_shorter_than_its_length_field(self):
        self.weights.write_bytes(b"\x10\x00\x00")
        self.fail_weights("expected", "3")

    def test_a_header_of_length_zero(self):
        self.weights.write_bytes(bytes(8) + b"{}")
        self.fail_weights("expected", "0")

    def test_a_header_longer_than_the_file(self):
        file = Safetensors(self.weights)
        file.save_header(b"{}", length=50_000_000)
        self.fail_weights("expected", "50000000")

    def test_a_header_longer_than_allowed(self):
        file = Safetensors(self.weights)
        file.save_header(b"{}", length=(1 << 64) - 1)
        self.fail_weights("expected", str((1 << 64) - 1))

    def test_a_header_that_is_no_json(self):
        file = Safetensors(self.weights)
        file.save_header(b'{"model.decoder')
        self.fail_weights("JSON")

    def test_truncated_data(self):
        self.weights.write_bytes(self.weights.read_bytes()[:-1000])
        self.fail_weights("expected")

    def test_bytes_after_the_last_tensor(self):
        self.weights.write_bytes(self.weights.read_bytes() + b"rest")
        self.fail_weights("expected")

    def test_offsets_out_of_range(self):
        file = Safetensors(self.weights)
        begin, end = file.header[CUT]["data_offsets"]
        size = len(file.data)
        file.header[CUT]["data_offsets"] = [size, size + end - begin]
        file.save()
        self.fail_weights(CUT, "expected")

    def test_negative_and_reversed_offsets(self):
        file = Safetensors(self.weights)
        begin, end = file.header[CUT]["data_offsets"]
        for offsets in ([-2, end], [end, begin], [begin], "all", [begin, 1 << 70]):
            file.header[CUT]["data_offsets"] = offsets
            file.save()
            self.fail_weights(CUT, "data_offsets", "expected", ranks=offsets[0] == -2)

    def test_overlapping_offsets(self):
        file = Safetensors(self.weights)
        begin, end = file.header[CUT]["data_offsets"]
        file.header[CUT]["data_offsets"] = [begin - 2, end - 2]
        file.save()
        self.fail_weights("model.decoder.layers.2.", "expected")

    def test_a_shape_that_disagrees_with_the_offsets(self):
        file = Safetensors(self.weights)
        file.header[CUT]["shape"][0] += 1
        file.save()
        self.fail_weights(CUT, "expected")

    def test_a_wrong_shape(self):
        file = Safetensors(self.weights)
        file.header[CUT]["shape"].reverse()
        file.save()
        self.fail_weights(CUT, "expected shape [512, 128]", "[128, 512]")

    def test_a_wrong_shape_of_a_whole_tensor(self):
        file = Safetensors(self.weights)
        file.header[WHOLE]["shape"] = [2, 64]
        file.save()
        self.fail_weights(WHOLE, "expected shape [128]", "[2, 64]")

    def test_an_unknown_dtype(self):
        file = Safetensors(self.weights)
        file.header[CUT]["dtype"] = "Q7"
        file.save()
        self.fail_weights(CUT, "Q7", "expected")

    def test_a_dtype_of_integers(self):
        file = Safetensors(self.weights)
        file.header[CUT]["dtype"] = "I16"
        file.save()
        self.fail_weights(CUT, "I16", "expected")

    def test_a_missing_tensor(self):
        # Renamed, so that the file itself stays whole.
        for name in (CUT, WHOLE):
            file = Safetensors(OPT / "model.safetensors")
            file.path = self.weights
            file.header["unknown"] = file.header.pop(name)
            file.save()
            self.fail_run(self.model, self.model, name, "missing", "OPTForCausalLM needs it")

    def test_no_weights(self):
        self.weights.unlink()
        self.fail_run(self.model, self.model, "expected *.safetensors", "found none")

    def test_only_a_pickle(self):
        self.weights.rename(self.model / "pytorch_model.bin")
        self.fail_run(self.model, self.model, "pytorch_model.bin", "expected *.safetensors")

    def test_a_folder_in_place_of_the_file(self):
        self.weights.unlink()
        self.weights.mkdir()
        self.fail_weights()

    @unittest.skipIf(os.geteuid() == 0, "permissions do not stop root")
    def test_a_file_without_permission(self):
        self.weights.chmod(0)
        self.fail_weights("Permission denied")

    def test_other_commands_refuse_it_too(self):
        file = Safetensors(self.weights)
        file.header[CUT]["dtype"] = "Q7"
        file.save()
        text = self.write("text.txt", "Once upon a time. " * 100)
        self.fail_alike(["eval", "--model", self.model, "--text", text, "--window", "16"], 1,
                        self.weights, CUT, "Q7")
        self.fail_alike(["inspect", self.model], 1, self.weights, CUT, "Q7", parallel=())
        self.fail_alike(["bench", "engine", "--model", self.model], 1, self.weights, CUT, "Q7")


class IndexTest(BadModel):

    def setUp(self):
        super().setUp()
        self.model = self.copy_model()
        names = Safetensors(self.model / "model.safetensors").header.keys() - {"__metadata__"}
        (self.model / "model.safetensors").rename(self.model / "model-00001-of-00001.safetensors")
        self.index = self.model / "model.safetensors.index.json"
        self.map = {name: "model-00001-of-00001.safetensors" for name in names}
        self.save()

    def save(self):
        self.index.write_text(json.dumps({"metadata": {}, "weight_map": self.map}))

    def test_the_whole_folder_works(self):
        self.succeed(["run", "--model", self.model, "--prompt", "The", "--max-tokens", "2"])

    def test_a_missing_file(self):
        self.map[CUT] = "model-00002-of-00001.safetensors"
        self.save()
        self.fail_run(self.model, self.index, CUT, "model-00002-of-00001.safetensors")

    def test_a_file_outside_the_folder(self):
        shutil.copyfile(OPT / "model.safetensors", self.folder / "outside.safetensors")
        for name in ("../outside.safetensors", str(self.folder / "outside.safetensors"), "..", ""):
            self.map[CUT] = name
            self.save()
            self.fail_run(self.model, self.index, CUT, "expected the name of a file in this folder",
                          f'found "{name}"', ranks=name.startswith(".."))

    def test_a_tensor_that_its_file_does_not_have(self):
        self.map["model.decoder.layers.9.fc1.weight"] = "model-00001-of-00001.safetensors"
        self.save()
        self.fail_run(self.model, self.index, "model.decoder.layers.9.fc1.weight", "expected in",
                      "in no file")

    def test_no_map(self):
        self.index.write_text('{"metadata": {}}')
        self.fail_run(self.model, self.index, "weight_map", "expected an object")

    def test_invalid_json(self):
        self.index.write_text('{"weight_map": {"a": "b",}}')
        self.fail_run(self.model, self.index, "line 1, column", "not valid JSON")

    def test_an_empty_index(self):
        self.index.write_text("")
        self.fail_run(self.model, self.index, "expected JSON")


class ConfigTest(BadModel):

    def setUp(self):
        super().setUp()
        self.model = self.copy_model()
        self.config = self.model / "config.json"

    def test_no_folder(self):
        self.fail_run(self.folder / "nowhere", self.folder / "nowhere")

    def test_a_file_in_place_of_the_folder(self):
        self.fail_run(self.config, self.config)

    def test_no_config(self):
        self.config.unlink()
        self.fail_run(self.model, self.config)

    def test_invalid_json(self):
        self.config.write_text('{"architectures": ["OPTForCausalLM"],\n "hidden_size": }')
        self.fail_run(self.model, self.config, "line 2, column 17", "not valid JSON")

    def test_json_cut_off(self):
        self.config.write_text(self.config.read_text()[:100])
        self.fail_run(self.model, self.config, "not valid JSON", "the end of the file")

    def test_a_list_in_place_of_an_object(self):
        self.config.write_text("[]")
        self.fail_run(self.model, self.config, "expected an object")

    def test_an_unknown_architecture(self):
        edit_json(self.config, architectures=["FooForCausalLM"])
        self.fail_run(self.model, self.config, "FooForCausalLM", "supported: OPTForCausalLM")

    def test_no_architecture(self):
        edit_json(self.config, architectures=None, model_type=None)
        self.fail_run(self.model, self.config, "expected")

    def test_fields_that_make_no_sense(self):
        for field, value in (("hidden_size", 0), ("hidden_size", -128), ("hidden_size", "big"),
                             ("hidden_size", 127), ("num_hidden_layers", 1 << 62),
                             ("num_attention_heads", 3), ("vocab_size", 1.5),
                             ("max_position_embeddings", None)):
            with self.subTest(field=field, value=value):
                model = self.copy_model()
                edit_json(model / "config.json", **{field: value})
                self.fail_run(model, model / "config.json", field, "expected", ranks=value == 0)

    def test_a_config_larger_than_the_weights(self):
        edit_json(self.config, vocab_size=2048)
        self.fail_run(self.model, self.model / "model.safetensors",
                      "model.decoder.embed_tokens.weight", "expected shape [2048, 128]",
                      "[1024, 128]")

    def test_more_layers_than_the_weights(self):
        edit_json(self.config, num_hidden_layers=5)
        self.fail_run(self.model, self.model, "model.decoder.layers.4.", "missing")

    def test_an_end_token_outside_the_vocabulary(self):
        edit_json(self.model / "generation_config.json", eos_token_id=1024)
        self.fail_run(self.model, self.model / "generation_config.json", "eos_token_id", "expected",
                      "1024")

    def test_llama_heads_that_do_not_divide(self):
        model = self.copy_model(LLAMA)
        edit_json(model / "config.json", num_key_value_heads=3)
        self.fail_run(model, model / "config.json", "num_key_value_heads", "expected")


class TokenizerTest(BadModel):

    def setUp(self):
        super().setUp()
        self.model = self.copy_model()
        self.tokenizer = self.model / "tokenizer.json"

    def test_no_tokenizer(self):
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            (self.model / name).unlink()
        self.fail_run(self.model, "no tokenizer", self.tokenizer, "tokenizer.model")

    def test_invalid_json(self):
        self.tokenizer.write_text(self.tokenizer.read_text()[:-20])
        self.fail_run(self.model, self.tokenizer, "not valid JSON")

    def test_an_unknown_model(self):
        value = json.loads(self.tokenizer.read_text())
        value["model"]["type"] = "Guess"
        self.tokenizer.write_text(json.dumps(value))
        self.fail_run(self.model, self.tokenizer, "Guess", "supported: BPE")

    def test_a_merge_of_unknown_tokens(self):
        value = json.loads(self.tokenizer.read_text())
        value["model"]["merges"].append(["no such", "token"])
        self.tokenizer.write_text(json.dumps(value))
        self.fail_run(self.model, self.tokenizer, "model.merges", '"no such"', "vocabulary")

    def test_ids_beyond_the_model(self):
        # A tokenizer of another model: what it makes of the prompt has no embedding.
        value = json.loads(self.tokenizer.read_text())
        vocabulary = value["model"]["vocab"]
        vocabulary["The"] = 5000
        self.tokenizer.write_text(json.dumps(value))
        self.fail_alike(["run", "--model", self.model, "--prompt", "The"], 1, "5000", "expected")


class OneRankTest(BadModel):
    """What only one rank finds ends the job on all, and the line says which rank it was."""

    @support.needs_mpi
    def test_a_shard_that_only_the_second_stage_reads(self):
        model = self.copy_model()
        file = Safetensors(model / "model.safetensors")
        file.header[WHOLE]["shape"] = [64, 2]
        file.save()
        result = support.run(["run", "--model", model, "--prompt", "The", "--pp", "2"], ranks=2)
        self.check_error(result, 1, "rank 1: ", file.path, WHOLE, "expected shape [128]")
        self.assertEqual(result.stdout, "")


if __name__ == "__main__":
    support.main()
