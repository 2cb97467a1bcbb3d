"""Checks that includes point one way: between layers, between folders, and to what is linked.

usage: check_includes.py ROOT
"""

import os
import re
import sys

from source_tree import (SourceTree, Violation, cmake_commands, cmake_file_of, is_bench,
                         is_test_code, report)

LAYERS = ("kernels", "parallel", "runtime", "launcher", "tests")  # each includes those before it
OURS = LAYERS + ("proto",)
SOURCES = (".h", ".cc", ".cu", ".cuh")
SECTIONS = ("HEADERS", "SOURCES", "DEPS", "PRIVATE_DEPS",  # of thinwire_library
            "CUDA_HEADERS", "CUDA_SOURCES", "CUDA_DEPS")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')

MPI = re.compile(r"^mpi(-ext)?\.h$")
CUDA = re.compile(r"^(cuda|cublas|curand|cudnn|cub/|nccl|nvtx)")
CUDA_FILE = re.compile(r"(_cuda\.(h|cc)|/cuda_\w+\.(h|cc)|\.cu|\.cuh|/[^/]*nccl[^/]*)$")
MPI_FILE = re.compile(r"^parallel/comm/[^/]*mpi[^/]*$")
# What code that only counts (pages, slots, tokens) has no use for.
MEMORY = re.compile(
    r"^kernels/(?!core/)|^kernels/core/(backend|buffer|device|dtype|float16|mapped_file|stream|"
    r"tensor|tensor_view|thread_pool)\.h$")
COUNTING_FILE = re.compile(r"^runtime/(scheduler/|cache/page_allocator\.)")


def folder_of(path):
    return os.path.dirname(path)


def includes_of(tree):
    """{path: [(line, included)]} of the tree's sources."""
    found = {}
    for path in tree.with_suffix(*SOURCES):
        found[path] = [(number, match[1]) for number, line in tree.lines(path)
                       if (match := INCLUDE.match(line))]
    return found


def reached(includes, path):
    """{included: how it is reached} of all headers that `path` includes, also indirectly."""
    found, pending = {}, [(path, path)]
    while pending:
        at, how = pending.pop()
        for _, included in includes.get(at, ()):
            if included not in found:
                found[included] = f"{how} -> {included}"
                pending.append((included, found[included]))
    return found


def check_layers(includes):
    for path, lines in includes.items():
        layer = path.split("/")[0]
        for number, included in lines:
            top = included.split("/")[0]
            if top not in OURS:
                if os.path.join(folder_of(path), included) in includes:
                    yield Violation(path, number, "include-path",
                                    f'write "{os.path.join(folder_of(path), included)}"')
                continue
            if top == "proto":
                if layer != "launcher" and not path.startswith(("runtime/server/", "proto/")) \
                        and not is_test_code(path):
                    yield Violation(path, number, "include-proto",
                                    "protocol types stay in runtime/server and launcher")
            elif top == "tests":
                if not is_test_code(path):
                    yield Violation(path, number, "include-tests",
                                    "only tests may include what lies in tests/")
            elif layer in LAYERS and LAYERS.index(top) > LAYERS.index(layer):
                yield Violation(path, number, "include-layer",
                                f"{layer} may not include {top} ({' <- '.join(LAYERS[:4])})")
            elif path.startswith("kernels/core/") and not included.startswith("kernels/core/") \
                    and not (is_test_code(path) and included.startswith("kernels/testing/")):
                yield Violation(path, number, "include-core",
                                "kernels/core is the leaf: it includes nothing else of ours")
            elif included.startswith("kernels/testing/") and not (
                    is_test_code(path) or is_bench(path) or path.startswith("kernels/testing/")):
                yield Violation(path, number, "include-testing",
                                "kernels/testing is for tests and benchmarks")


def check_libraries(includes):
    """Which files may see which third-party headers."""
    for path, lines in includes.items():
        for number, included in lines:
            if MPI.match(included) and not MPI_FILE.match(path):
                yield Violation(path, number, "include-mpi",
                                "only parallel/comm/*mpi* may include mpi.h")
            if CUDA.match(included) and not CUDA_FILE.search(path):
                yield Violation(path, number, "include-cuda",
                                "CUDA and NCCL headers belong in *_cuda.*, *.cu and nccl files")
            if included.startswith(("spdlog/", "CLI/")) and not path.startswith("launcher/"):
                yield Violation(path, number, "include-launcher-only",
                                f"only the launcher may include {included}")
            if included == "nlohmann/json.hpp" and path.endswith(".h") and not is_test_code(path):
                yield Violation(path, number, "include-json",
                                "headers include nlohmann/json_fwd.hpp: json.hpp is slow to read")
    for path in includes:
        if path.startswith(("runtime/", "launcher/")):
            for header, how in reached(includes, path).items():
                if MPI.match(header) or CUDA.match(header):
                    yield Violation(path, 1, "include-device-library",
                                    f"keep MPI, CUDA and NCCL below: {how}")
        if COUNTING_FILE.match(path) and not is_test_code(path):
            for header, how in reached(includes, path).items():
                if MEMORY.match(header):
                    yield Violation(path, 1, "include-memory",
                                    f"scheduler and page allocator know no memory: {how}")


class Libraries:
    """The library of each folder, what it links, and the order in which folders are added."""

    def __init__(self, tree):
        self.of_folder, self.public, self.private, self.order = {}, {}, {}, {}
        self._read(tree, "")

    def _read(self, tree, folder):
        path = os.path.join(folder, "CMakeLists.txt")
        if path not in tree.paths:
            return
        for command in cmake_commands(tree.text(path)):
            if command.name == "add_subdirectory":
                self._read(tree, os.path.join(folder, command.args[0]))
            elif command.name == "thinwire_library" and folder:
                sections, at = {}, None
                for arg in command.args[1:]:
                    if arg in SECTIONS:
                        at = arg
                    else:
                        sections.setdefault(at, []).append(arg)
                name = command.args[0]
                self.of_folder.setdefault(folder, name)
                self.order.setdefault(folder, len(self.order))
                self.public.setdefault(name, set()).update(sections.get("DEPS", ()))
                self.private.setdefault(name, set()).update(sections.get("PRIVATE_DEPS", ()),
                                                            sections.get("CUDA_DEPS", ()))

    def visible(self, library, header):
        """Libraries whose headers the library's headers, or else its sources, may include."""
        pending = set(self.public[library]) | (set() if header else self.private[library])
        found = {library}
        while pending:
            at = pending.pop()
            if at not in found:
                found.add(at)
                pending |= self.public.get(at, set())
        return found


def check_links(tree, includes):
    libraries = Libraries(tree)
    for path, lines in includes.items():
        folder = folder_of(path)
        if folder not in libraries.of_folder or is_test_code(path) or is_bench(path):
            continue
        library = libraries.of_folder[folder]
        in_headers = path in {os.path.join(folder, name) for name in headers_of(tree, folder)}
        visible = libraries.visible(library, in_headers)
        list_name = "DEPS" if in_headers else "PRIVATE_DEPS"
        for number, included in lines:
            target = folder_of(included)
            if wanted := absl_library(included):
                if wanted not in visible:
                    yield Violation(path, number, "include-unlinked",
                                    f"add {wanted} to {list_name} in {folder}/CMakeLists.txt")
                continue
            if target == folder or target not in libraries.of_folder:
                continue
            wanted = libraries.of_folder[target]
            if libraries.order[target] > libraries.order[folder]:
                yield Violation(path, number, "include-order",
                                f"{target} is built after {folder} and builds on it")
            elif wanted not in visible:
                yield Violation(path, number, "include-unlinked",
                                f"add {wanted} to {list_name} in {folder}/CMakeLists.txt")


def absl_library(included):
    """The library behind those of Abseil's headers that no other library we link brings along."""
    match = re.match(r"absl/(?:container|strings)/(flat_hash_\w+|inlined_vector|str_format)\.h",
                     included)
    return f"absl::{match[1]}" if match else None


def headers_of(tree, folder):
    """Names in the HEADERS of the folder's libraries, apart from those for its own files only."""
    names = set()
    for command in cmake_commands(tree.text(cmake_file_of(folder + "/x"))):
        if command.name == "thinwire_library":
            names.update(arg for arg in command.args if arg.endswith(".h"))
    return {name for name in names if not is_internal(tree, os.path.join(folder, name))}


def is_internal(tree, path):
    """A header that only its own folder includes: PRIVATE_DEPS are enough for it."""
    wanted = f'#include "{path}"'
    return not any(wanted in tree.text(other) for other in tree.with_suffix(*SOURCES)
                   if folder_of(other) != folder_of(path) and not is_test_code(other))


def check(tree):
    includes = includes_of(tree)
    return [*check_layers(includes), *check_libraries(includes), *check_links(tree, includes)]


if __name__ == "__main__":
    sys.exit(report(check(SourceTree(sys.argv[1]))))
