"""Writes model folders with vector-quantised layers, and what their weights are.

Independent of the program: written from the format alone, with the standard library only. Numbers
are rounded to fp32 after each operation, as the format's definition says.

usage: vptq_folders.py FOLDER
"""

import itertools
import json
import math
import pathlib
import random
import struct
import sys

MODULE = "model.decoder.layers.0.fc1"


def f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def to_bits(value, dtype):
    """The 16 bits of a number; bf16 is cut off, not rounded."""
    if dtype == "F16":
        return struct.unpack("<H", struct.pack("<e", value))[0]
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16


def from_bits(bits, dtype):
    if dtype == "F16":
        return struct.unpack("<e", struct.pack("<H", bits))[0]
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def write_safetensors(path, tensors):
    """tensors: {name: (dtype, shape, bytes)}"""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def pack_codes(codes, bits):
    """Codes of one row as 32-bit words, least significant bit first."""
    string = sum(code << (i * bits) for i, code in enumerate(codes))
    return string.to_bytes((len(codes) * bits + 31) // 32 * 4, "little")


def halves(values):
    return struct.pack(f"<{len(values)}H", *values)


class Layer:
    """One layer: indices, codebooks, and the tensors that they are stored as.

    spec: v, k, kr (0: no residual), groups, outliers (columns), v0, k0, norm, perm (None, "i16",
    "i64"), layout ("packed", "u16", "f16"), dtype ("F16", "BF16").
    """

    def __init__(self, out, inputs, spec, seed):
        self.out, self.inputs, self.spec = out, inputs, spec
        pick = random.Random(seed)
        number = lambda: to_bits(pick.gauss(0.0, 1.0), spec["dtype"])
        v, k, kr, groups = spec["v"], spec["k"], spec["kr"], spec["groups"]
        outliers = spec["outliers"]
        self.size = (inputs - outliers) // groups
        self.rows = math.ceil(out / v)
        book = lambda count, length: [[number() for _ in range(length)] for _ in range(count)]
        grid = lambda count, rows, columns: [[pick.randrange(count) for _ in range(columns)]
                                             for _ in range(rows)]
        self.books = [book(k, v) for _ in range(groups)]
        self.res_books = [book(kr, v) for _ in range(groups)] if kr else []
        self.indices = [grid(k, self.rows, self.size) for _ in range(groups)]
        self.res_indices = [grid(kr, self.rows, self.size) for _ in range(groups)] if kr else []
        if outliers:
            self.outlier_book = book(spec["k0"], spec["v0"])
            self.outlier_indices = grid(spec["k0"], math.ceil(out / spec["v0"]), outliers)
        self.scale = [number() for _ in range(inputs)] if spec["norm"] else []
        self.offset = [number() for _ in range(inputs)] if spec["norm"] else []
        self.order = list(range(inputs))
        if spec["perm"]:
            pick.shuffle(self.order)

    def weight(self, o, p):
        """w[o, order[p]]"""
        spec = self.spec
        number = lambda bits: from_bits(bits, spec["dtype"])
        outliers = spec["outliers"]
        if p < outliers:
            index = self.outlier_indices[o // spec["v0"]][p]
            value = number(self.outlier_book[index][o % spec["v0"]])
        else:
            g, c = divmod(p - outliers, self.size)
            row, element = divmod(o, spec["v"])
            value = number(self.books[g][self.indices[g][row][c]][element])
            if self.res_books:
                index = self.res_indices[g][row][c]
                value = f32(value + number(self.res_books[g][index][element]))
        if spec["norm"]:
            column = self.order[p]
            value = f32(value * number(self.scale[column]))
            value = f32(value + number(self.offset[column]))
        return value

    def dequantized(self):
        """[out][in], by column."""
        weights = [[0.0] * self.inputs for _ in range(self.out)]
        for p, column in enumerate(self.order):
            for o in range(self.out):
                weights[o][column] = self.weight(o, p)
        return weights

    def config(self, sizes=True):
        spec = self.spec
        outliers = spec["outliers"] > 0
        config = {
            "vector_lens": [spec["v0"] if outliers else -1, spec["v"]],
            "num_centroids": [spec["k0"] if outliers else -1, spec["k"]],
            "num_res_centroids": [-1, spec["kr"] or -1],
            "group_num": spec["groups"],
            "group_size": self.size,
            "outlier_size": spec["outliers"],
            "enable_norm": spec["norm"],
            "enable_perm": spec["perm"] is not None,
            "is_indice_packed": spec["layout"] == "packed",
            "indices_as_float": spec["layout"] == "f16",
            "bias": "tensor([0.1])",
        }
        if sizes:
            config |= {"in_features": self.inputs, "out_features": self.out, "norm_dim": 0,
                       "vector_quant_dim": "out", "enable_proxy_error": False}
        return config

    def tensors(self, name):
        spec = self.spec
        v, k, kr, groups = spec["v"], spec["k"], spec["kr"], spec["groups"]
        layout, floats = spec["layout"], spec["dtype"]
        flat = lambda book: halves([bits for vector in book for bits in vector])
        found = {}
        if layout == "packed":
            b = (k - 1).bit_length()
            width = b + ((kr - 1).bit_length() if kr else 0)
            words = math.ceil(self.size * width / 32)
            data = b""
            for g in range(groups):
                for row in range(self.rows):
                    codes = self.indices[g][row]
                    if kr:
                        codes = [i | r << b for i, r in zip(codes, self.res_indices[g][row])]
                    data += pack_codes(codes, width)
            found["indices"] = ("I32", [groups, self.rows, words], data)
        else:
            stored = "I16" if layout == "u16" else "F16"
            shape = [groups, self.rows, self.size]
            found["indices"] = (stored, shape, b"".join(
                halves(row) for group in self.indices for row in group))
            if kr:
                found["res_indices"] = (stored, shape, b"".join(
                    halves(row) for group in self.res_indices for row in group))
        found["centroids.weight"] = (floats, [groups, k * v], b"".join(map(flat, self.books)))
        if kr:
            found["res_centroids.weight"] = (floats, [groups, kr * v],
                                             b"".join(map(flat, self.res_books)))
        if spec["norm"]:
            found["weight_scale"] = (floats, [self.inputs], halves(self.scale))
            found["weight_bias"] = (floats, [self.inputs], halves(self.offset))
        if spec["perm"] == "i16":
            found["perm"] = ("I16", [self.inputs], halves(self.order))
        if spec["perm"] == "i64":
            found["perm"] = ("I64", [self.inputs], struct.pack(f"<{self.inputs}q", *self.order))
        if spec["outliers"]:
            shape = [1, len(self.outlier_indices), spec["outliers"]]
            found["outlier_indices"] = ("I16", shape, b"".join(map(halves, self.outlier_indices)))
            found["outlier_centroids.weight"] = (floats, [1, spec["k0"] * spec["v0"]],
                                                 flat(self.outlier_book))
        return {f"{name}.{part}": tensor for part, tensor in found.items()}


def model_config(quantization):
    return {"architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 24,
            "word_embed_proj_dim": 24, "num_attention_heads": 4, "num_hidden_layers": 1,
            "ffn_dim": 40, "max_position_embeddings": 16, "vocab_size": 8,
            "activation_function": "relu", "torch_dtype": "float16",
            "quantization_config": {"quant_method": "vptq"} | quantization}


def write_folder(folder, layer, config, tensors, case):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config(config)))
    write_safetensors(folder / "model.safetensors", tensors)
    case |= {"module": MODULE, "out": layer.out, "in": layer.inputs}
    (folder / "case.json").write_text(json.dumps(case))


LENGTHS = [(4, 16), (6, 64), (8, 8), (12, 128), (3, 4), (16, 2), (8, 1024)]


def specs():
    product = itertools.product((None, "i16", "i64"), ("packed", "u16", "f16"), (0, 8), (0, 3),
                                (1, 3), (False, True), ("F16", "BF16"))
    for i, (perm, layout, kr, outliers, groups, norm, dtype) in enumerate(product):
        v, k = LENGTHS[i % len(LENGTHS)]
        yield {"v": v, "k": k, "kr": kr and 2 ** (i % 4), "groups": groups, "outliers": outliers,
               "v0": (4, 2, 8)[i % 3], "k0": 32, "norm": norm, "perm": perm, "layout": layout,
               "dtype": dtype}


def write_good(root):
    for i, spec in enumerate(specs()):
        layer = Layer((22, 24, 40)[i % 3], 24 + spec["outliers"], spec, seed=i)
        if i % 2:
            config = {"config_for_layers": {MODULE: layer.config()}}
        else:
            config = {"shared_layer_config": {MODULE.rsplit(".", 1)[1]: layer.config(sizes=False)}}
        folder = root / f"good-{i:03}"
        write_folder(folder, layer, config, layer.tensors(MODULE), {"spec": str(spec)})
        weights = [w for row in layer.dequantized() for w in row]
        (folder / "expected.bin").write_bytes(struct.pack(f"<{len(weights)}f", *weights))


PLAIN = {"v": 8, "k": 16, "kr": 4, "groups": 1, "outliers": 0, "v0": 4, "k0": 32, "norm": True,
         "perm": "i16", "layout": "packed", "dtype": "F16"}


def write_bad(root):
    """Folders that must be refused; "error" is in the message."""

    def bad(name, error, spec=None, config=None, tensors=None):
        layer = Layer(24, 24, PLAIN | (spec or {}), seed=1)
        written = layer.tensors(MODULE)
        for part, change in (tensors or {}).items():
            full = f"{MODULE}.{part}"
            changed = change(*written.get(full, ("F16", [], b"")))
            written.pop(full, None)
            if changed:
                written[full] = changed
        quantization = {"config_for_layers": {MODULE: layer.config() | (config or {})}}
        write_folder(root / f"bad-{name}", layer, quantization, written, {"error": error})

    def last_half(value):
        return lambda dtype, shape, data: (dtype, shape, data[:-2] + halves([value]))

    drop = lambda *_: None
    shorter = lambda dtype, shape, data: (dtype, shape[:-1] + [shape[-1] - 1],
                                          data[:len(data) // shape[-1] * (shape[-1] - 1)])
    bad("index", f"{MODULE}.indices\\\": expected indices below 16", {"layout": "u16"},
        tensors={"indices": last_half(16)})
    bad("residual-index", f"{MODULE}.res_indices\\\": expected indices below 4",
        {"layout": "u16"}, tensors={"res_indices": last_half(65535)})
    bad("outlier-index", f"{MODULE}.outlier_indices\\\": expected indices below 32",
        {"outliers": 4}, tensors={"outlier_indices": last_half(32)})
    bad("packed-length", f"{MODULE}.indices\\\": expected I32 [1, 3, 5]",
        tensors={"indices": shorter})
    bad("index-dtype", f"{MODULE}.indices\\\": expected I32", {"layout": "u16"},
        {"is_indice_packed": True})
    bad("power", "\"num_centroids\": expected a power of two, found 17",
        config={"num_centroids": [-1, 17]})
    bad("no-book", f"{MODULE}.centroids.weight", tensors={"centroids.weight": drop})
    bad("short-book", f"{MODULE}.res_centroids.weight\\\": expected floats [1, 32]",
        tensors={"res_centroids.weight": shorter})
    bad("residual-denied", f"{MODULE}.res_centroids.weight\\\": expected none",
        config={"num_res_centroids": [-1, -1], "num_centroids": [-1, 64]},
        tensors={"centroids.weight": lambda d, s, b: (d, [1, 512], b * 4)})
    bad("no-scale", f"{MODULE}.weight_scale", tensors={"weight_scale": drop})
    bad("norm-denied", f"{MODULE}.weight_scale\\\": expected none", config={"enable_norm": False})
    bad("perm-denied", f"{MODULE}.perm\\\": expected none", config={"enable_perm": False})
    bad("perm-twice", f"{MODULE}.perm\\\": expected each input of [0, 24) once",
        tensors={"perm": lambda d, s, b: (d, s, b[:-2] + b[:2])})
    bad("scale-infinite", f"{MODULE}.weight_scale\\\": expected finite",
        tensors={"weight_scale": last_half(0x7c00)})
    bad("book-nan", f"{MODULE}.centroids.weight\\\": expected finite",
        tensors={"centroids.weight": last_half(0x7e00)})
    bad("sizes", f"{MODULE}\": expected 24 inputs",
        config={"in_features": 48, "group_size": 48})
    bad("group-size", "\"group_size\": expected 1 equal groups", config={"group_size": 23})
    bad("outliers-unsaid", "\"outlier_size\": expected 0", config={"outlier_size": 4})
    bad("long", "vectors of at most 16", {"v": 24})
    bad("norm-dim", "\"norm_dim\": 1 is not supported", config={"norm_dim": 1})
    bad("proxy", "\"enable_proxy_error\": true is not supported",
        config={"enable_proxy_error": True})
    bad("quant-dim", "\"vector_quant_dim\": \"in\" is not supported",
        config={"vector_quant_dim": "in"})


def main():
    root = pathlib.Path(sys.argv[1])
    write_good(root)
    write_bad(root)


if __name__ == "__main__":
    main()
