"""Each check finds what it is for, in small made-up trees, and passes what is right."""

import unittest

import check_includes
import check_registration
import check_text
from source_tree import SourceTree, cmake_commands

GOOD_HEADER = "// What it is.\n#pragma once\n"


class FakeTree(SourceTree):
    def __init__(self, files):
        super().__init__("/nowhere", files.keys())
        self._texts = dict(files)

    def size(self, path):
        return len(self._texts[path])


def library(name, deps="", private_deps="", headers="a.h"):
    return (f"thinwire_library({name}\n  HEADERS {headers}\n  SOURCES a.cc\n"
            f"  DEPS {deps}\n  PRIVATE_DEPS {private_deps})\n")


def rules(violations):
    return sorted({violation.rule for violation in violations})


class IncludesTest(unittest.TestCase):
    def rules_of(self, files):
        return rules(check_includes.check(FakeTree(files)))

    def test_layers_point_one_way(self):
        self.assertEqual(self.rules_of({"kernels/norm/a.h": '#include "runtime/engine/a.h"\n'}),
                         ["include-layer"])
        self.assertEqual(self.rules_of({"runtime/engine/a.h": '#include "kernels/norm/a.h"\n'}), [])
        self.assertEqual(self.rules_of({"kernels/core/a.cc": '#include "kernels/norm/a.h"\n'}),
                         ["include-core"])

    def test_tests_are_included_by_tests_only(self):
        line = '#include "tests/support/a.h"\n'
        self.assertEqual(self.rules_of({"runtime/json/a.cc": line}), ["include-tests"])
        self.assertEqual(self.rules_of({"runtime/json/a_test.cc": line}), [])
        line = '#include "kernels/testing/a.h"\n'
        self.assertEqual(self.rules_of({"kernels/norm/a.cc": line}), ["include-testing"])
        self.assertEqual(self.rules_of({"kernels/norm/a_bench.cc": line}), [])

    def test_protocol_types_stay_at_the_edge(self):
        line = '#include "proto/serve.pb.h"\n'
        self.assertEqual(self.rules_of({"runtime/engine/a.cc": line}), ["include-proto"])
        self.assertEqual(self.rules_of({"runtime/server/a.cc": line, "launcher/a.cc": line}), [])

    def test_libraries_stay_where_they_belong(self):
        for path, header, rule in (
                ("parallel/comm/a.cc", "mpi.h", "include-mpi"),
                ("parallel/comm/a.cc", "nccl.h", "include-cuda"),
                ("kernels/norm/a.cc", "cuda_runtime.h", "include-cuda"),
                ("runtime/engine/a.cc", "spdlog/spdlog.h", "include-launcher-only"),
                ("runtime/engine/a.h", "nlohmann/json.hpp", "include-json")):
            self.assertEqual(self.rules_of({path: f"#include <{header}>\n"}), [rule])
        for path, header in (
                ("parallel/comm/mpi_a.cc", "mpi.h"), ("parallel/comm/nccl_a.cc", "nccl.h"),
                ("kernels/norm/norm_cuda.cc", "cuda_runtime.h"), ("kernels/norm/a.cu", "cub/cub.h"),
                ("launcher/a.cc", "CLI/CLI.hpp"), ("runtime/engine/a.cc", "nlohmann/json.hpp"),
                ("runtime/engine/a.h", "nlohmann/json_fwd.hpp")):
            self.assertEqual(self.rules_of({path: f"#include <{header}>\n"}), [])

    def test_indirect_includes_count_too(self):
        self.assertEqual(
            self.rules_of({"runtime/engine/a.cc": '#include "parallel/comm/mpi_a.h"\n',
                           "parallel/comm/mpi_a.h": "#include <mpi.h>\n"}),
            ["include-device-library"])
        self.assertEqual(
            self.rules_of({"runtime/scheduler/a.h": '#include "runtime/cache/a.h"\n',
                           "runtime/cache/a.h": '#include "kernels/core/tensor.h"\n'}),
            ["include-memory"])

    def test_folders_include_what_is_linked_and_built_before_them(self):
        def tree(order, model, engine, line):
            return {"CMakeLists.txt": "".join(f"add_subdirectory({f})\n" for f in order),
                    "runtime/model/CMakeLists.txt": model,
                    "runtime/engine/CMakeLists.txt": engine,
                    "runtime/model/a.h": GOOD_HEADER, "runtime/engine/a.h": GOOD_HEADER, **line}
        forward = ("runtime/model", "runtime/engine")
        uses = {"runtime/engine/a.cc": '#include "runtime/model/a.h"\n'}
        model = library("m")
        self.assertEqual(self.rules_of(tree(forward, model, library("e", "m"), uses)), [])
        self.assertEqual(self.rules_of(tree(forward, model, library("e", "", "m"), uses)), [])
        self.assertEqual(self.rules_of(tree(forward, model, library("e"), uses)),
                         ["include-unlinked"])
        self.assertEqual(self.rules_of(tree(forward[::-1], model, library("e", "m"), uses)),
                         ["include-order"])
        hidden = {"runtime/engine/a.h": '#include "runtime/model/a.h"\n',
                  "launcher/a.cc": '#include "runtime/engine/a.h"\n'}
        self.assertEqual(self.rules_of(tree(forward, model, library("e", "", "m"), hidden)),
                         ["include-unlinked"])


class RegistrationTest(unittest.TestCase):
    def test_sources_are_named_beside_themselves(self):
        cmake = "thinwire_library(a HEADERS a.h SOURCES a.cc)\nthinwire_test(a_test)\n# b.cc\n"
        tree = FakeTree({"x/CMakeLists.txt": cmake, "x/a.h": "", "x/a.cc": "", "x/a_test.cc": "",
                         "x/b.cc": "", "y/c.cc": ""})
        self.assertEqual([v.path for v in check_registration.check_sources_are_named(tree)],
                         ["x/b.cc", "y/c.cc"])

    def test_tests_run_unless_their_part_is_not_built(self):
        cmake = ("thinwire_test(a_test)\nif(THINWIRE_HAS_MPI)\n  thinwire_test(b_test)\nendif()\n"
                 "if(NEVER)\n  thinwire_test(c_test)\nendif()\nthinwire_test(d_test GPU)\n")
        tree = FakeTree({"x/CMakeLists.txt": cmake, "x/a_test.cc": "", "x/b_test.cc": "",
                         "x/c_test.cc": "", "x/d_test.cc": "", "x/test_d.py": "",
                         "x/test_e.py": ""})
        ran = [["a", "/build/x/a_test"], ["d", "python3", "x/test_d.py"]]
        self.assertEqual([v.path for v in check_registration.check_tests_run(tree, ran)],
                         ["x/c_test.cc", "x/test_e.py"])


class TextTest(unittest.TestCase):
    def rules_of(self, path, text):
        tree = FakeTree({path: text})
        checks = [check_text.check_lines, check_text.check_size, check_text.check_orphans]
        if path.endswith(".h"):
            checks.append(check_text.check_header)
        return rules(violation for check in checks for violation in check(tree, path))

    def test_lines(self):
        for text, rule in (("int a; \n", "trailing-space"), ("\tint a;\n", "tab"),
                           ("x" * 101 + "\n", "line-length"), ("// TO" + "DO\n", "unfinished"),
                           ('"' + "/home" + '/me"\n', "machine-path"), ("int a;", "last-line"),
                           ("int a;\n" * 501, "file-length")):
            self.assertEqual(self.rules_of("a.cc", text), [rule])
        self.assertEqual(self.rules_of("a.cc", "// https://" + "x" * 120 + "\n"), [])
        self.assertEqual(self.rules_of("a.cc", "ü" * 100 + "\n"), [])
        self.assertEqual(self.rules_of("a.md", "| " + "x" * 120 + " |\n"), [])

    def test_headers(self):
        self.assertEqual(self.rules_of("a.h", GOOD_HEADER), [])
        self.assertEqual(self.rules_of("a.h", "#pragma once\n"), ["header-comment", "pragma-once"])

    def test_broken_paragraphs(self):
        full = "// " + "word " * 18 + "words"
        self.assertEqual(self.rules_of("a.cc", f"{full}\n// than\n// before\n"), ["broken-comment"])
        self.assertEqual(self.rules_of("a.cc", f"{full}\n// than.\n// Before\n"), [])
        self.assertEqual(self.rules_of("a.cc", f"{full}\n// than\nint before;\n"), [])


class CMakeTest(unittest.TestCase):
    def test_commands_have_arguments_and_conditions(self):
        commands = cmake_commands(
            'a(b "c d" # e\n  $<F:(g)>)\nif(X)\n  h()\nelse()\n  i()\nendif()')
        self.assertEqual([c.name for c in commands], ["a", "h", "i"])
        self.assertEqual(commands[0].args, ["b", "c d", "$<F:(g)>"])
        self.assertEqual([c.conditions for c in commands], [[], ["X"], ["NOT (X) "]])


if __name__ == "__main__":
    unittest.main()
