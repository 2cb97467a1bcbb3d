"""Checks that nothing lies about unbuilt: sources are named in CMake, tests are registered.

usage: check_registration.py ROOT BUILD_DIRECTORY CTEST
"""

import json
import os
import re
import subprocess
import sys

from source_tree import SourceTree, Violation, cmake_commands, cmake_file_of, report

OPTIONAL = re.compile(r"\bTHINWIRE_HAS_(MPI|CUDA|SERVER)\b")


def words_of(commands):
    """Names that the commands mention, each with whether an optional part of the build holds it."""
    words = {}
    for command in commands:
        optional = "GPU" in command.args or any(
            OPTIONAL.search(condition) for condition in command.conditions)
        for arg in command.args:
            for word in re.split(r"[^\w.\-]+", arg):
                words[word] = words.get(word, True) and optional
    return words


def check_sources_are_named(tree):
    for path in tree.with_suffix(".h", ".cc", ".cu", ".cuh"):
        cmake, name = cmake_file_of(path), os.path.basename(path)
        words = words_of(cmake_commands(tree.text(cmake))) if cmake in tree.paths else {}
        stem = name.rsplit(".", 1)[0]
        if name not in words and not (stem.endswith(("_test", "_bench")) and stem in words):
            yield Violation(path, 1, "unbuilt", f"name it in {cmake}")


def is_test(path):
    name = os.path.basename(path)
    return name.endswith("_test.cc") or (name.startswith("test_") and name.endswith(".py"))


def check_tests_run(tree, test_commands):
    """test_commands: of each registered test, the words of its command line."""
    run = {word for command in test_commands for argument in command
           for word in re.split(r"[^\w\-]+", argument)}
    for path in filter(is_test, tree.paths):
        stem = os.path.basename(path).rsplit(".", 1)[0]
        if stem in run:
            continue
        cmake = cmake_file_of(path)
        words = words_of(cmake_commands(tree.text(cmake))) if cmake in tree.paths else {}
        if not words.get(stem) and not words.get(os.path.basename(path)):  # in no optional part
            yield Violation(path, 1, "unregistered-test", f"ctest does not run it: see {cmake}")


def registered_commands(build, ctest):
    listed = subprocess.run([ctest, "--test-dir", build, "--show-only=json-v1"],
                            check=True, capture_output=True, text=True).stdout
    # The command is missing while the program is not built.
    return [[test["name"], *test.get("command", [])] for test in json.loads(listed)["tests"]]


if __name__ == "__main__":
    source_tree = SourceTree(sys.argv[1])
    sys.exit(report([*check_sources_are_named(source_tree),
                     *check_tests_run(source_tree, registered_commands(*sys.argv[2:4]))]))
