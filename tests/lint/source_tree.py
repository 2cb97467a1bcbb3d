"""What the checks of this folder share: the tracked files, CMake's view of them, and reports."""

import os
import re
import subprocess
import sys
from typing import Iterator, NamedTuple

SKIPPED = 77  # the exit status that ctest shows as "Skipped"


class Violation(NamedTuple):
    path: str
    line: int
    rule: str
    advice: str

    def __str__(self):
        return f"{self.path}:{self.line}: {self.rule}: {self.advice}"


class SourceTree:
    """The files that git tracks below `root`, by path relative to it. Read once, then kept."""

    def __init__(self, root, paths=None):
        self.root = root
        self.paths = tracked_files(root) if paths is None else sorted(paths)
        self._texts = {}

    def text(self, path):
        if path not in self._texts:
            with open(os.path.join(self.root, path), encoding="utf-8", errors="replace") as file:
                self._texts[path] = file.read()
        return self._texts[path]

    def lines(self, path) -> Iterator[tuple]:
        """(number from 1, line without its end) of a text file."""
        return enumerate(self.text(path).split("\n"), start=1)

    def size(self, path):
        return os.path.getsize(os.path.join(self.root, path))

    def with_suffix(self, *suffixes):
        return [path for path in self.paths if path.endswith(suffixes)]


def tracked_files(root):
    """Paths that git tracks and that exist. Skips the test where there is no git checkout."""
    try:
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z"],
            check=True, capture_output=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped: {root} is no git checkout ({error})")
        sys.exit(SKIPPED)
    return sorted(p for p in listed if p and os.path.isfile(os.path.join(root, p)))


def is_data(path):
    """Fixtures and models: no rule on text applies to them."""
    written = path.endswith((".cc", ".h", ".md", ".py", "CMakeLists.txt"))
    return not written and ("/testdata/" in path or path.startswith("tests/models/"))


def is_test_code(path):
    """Files that end up in test programs only."""
    name = os.path.basename(path)
    return path.startswith("tests/") or name.endswith(
        ("_test.cc", "_testing.h", "_testing.cc", "_conformance.h", "_test_main.h"))


def is_bench(path):
    return path.endswith("_bench.cc")


class CMakeCommand(NamedTuple):
    name: str
    args: list
    conditions: list  # the texts of the if()s around it


def cmake_commands(text):
    """The commands of a CMakeLists.txt in order. Knows comments, quotes, nested parentheses and
    if(), which is all that ours use; expands nothing."""
    text = re.sub(r'("(?:[^"\\]|\\.)*")|#[^\n]*', lambda m: m[1] or "", text)
    commands, conditions, at = [], [], 0
    opening = re.compile(r"([A-Za-z_]\w*)\s*\(")
    while match := opening.search(text, at):
        depth, at = 1, match.end()
        begin = at
        while depth and at < len(text):
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        name, inside = match[1].lower(), text[begin:at - 1]
        if name == "if":
            conditions.append(inside)
        elif name in ("else", "elseif"):
            conditions[-1] = f"NOT ({conditions[-1]}) {inside}"
        elif name == "endif":
            conditions.pop()
        else:
            args = [a.strip('"') for a in re.findall(r'"(?:[^"\\]|\\.)*"|[^\s"]+', inside)]
            commands.append(CMakeCommand(name, args, list(conditions)))
    return commands


def cmake_file_of(path):
    """The CMakeLists.txt beside a file."""
    return os.path.join(os.path.dirname(path), "CMakeLists.txt")


def report(violations):
    """Prints them, sorted, and returns the exit status."""
    for violation in sorted(set(violations)):
        print(violation)
    return 1 if violations else 0
