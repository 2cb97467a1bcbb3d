"""Checks what every text file of ours has in common: line lengths, spaces, comments, sizes.

usage: check_text.py ROOT
"""

import os
import re
import sys

from source_tree import SourceTree, Violation, is_data, report

MAX_COLUMNS = 100
MAX_LINES = 500
MAX_BYTES = 3 * 1024 * 1024
TEXT = (".h", ".cc", ".cu", ".cuh", ".py", ".txt", ".sh", ".cmake", ".md", ".proto", ".in")

# Longer than MAX_LINES, and why they are not split.
LONG_FILES = {}

UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.}$])/(work|root|home)/")
URL = re.compile(r"https?://")
COMMENT = {"//": re.compile(r"^\s*//\s*(\S.*)$"), "#": re.compile(r"^\s*#\s*(\S.*)$")}


def check_lines(tree, path):
    markdown = path.endswith(".md")
    for number, line in tree.lines(path):
        if line != line.rstrip() and not (markdown and line.endswith("  ")):
            yield Violation(path, number, "trailing-space", "remove spaces at the end of the line")
        if "\t" in line:
            yield Violation(path, number, "tab", "indent with spaces")
        table = markdown and line.startswith("|")
        if len(line) > MAX_COLUMNS and not URL.search(line) and not table:
            yield Violation(path, number, "line-length",
                            f"{len(line)} columns, at most {MAX_COLUMNS}: wrap it")
        if UNFINISHED.search(line):
            yield Violation(path, number, "unfinished", "finish it, or say what is not supported")
        if MACHINE_PATH.search(line):
            yield Violation(path, number, "machine-path", "no absolute paths of one machine")


def check_orphans(tree, path):
    """Comments that a formatter broke: a full line, then a line of a word or two, then more."""
    comment = COMMENT["//" if path.endswith((".h", ".cc", ".cu", ".cuh", ".proto")) else "#"]
    lines = [""] + [line for _, line in tree.lines(path)] + [""]
    for number in range(2, len(lines) - 1):
        around = [comment.match(line) for line in lines[number - 1:number + 2]]
        if not all(around):
            continue
        full = len(lines[number - 1]) > MAX_COLUMNS - 15
        ends = re.search(r"[.:;]$", around[1][1])
        if full and len(around[1][1].split()) <= 2 and not ends:
            yield Violation(path, number, "broken-comment", "rewrap the paragraph")


def check_header(tree, path):
    text = tree.text(path)
    if not text.startswith("//"):
        yield Violation(path, 1, "header-comment", "say at the top what the header is")
    # Highway's per-target headers are read once per target.
    if "\n#pragma once\n" not in text and "HWY_TARGET_TOGGLE" not in text:
        yield Violation(path, 1, "pragma-once", "add #pragma once below the top comment")


def check_size(tree, path):
    num_lines = tree.text(path).count("\n")
    if num_lines > MAX_LINES and path not in LONG_FILES:
        yield Violation(path, 1, "file-length", f"{num_lines} lines, at most {MAX_LINES}: split it")
    if num_lines <= MAX_LINES and path in LONG_FILES:
        yield Violation(path, 1, "file-length", "no longer long: remove it from LONG_FILES")
    if tree.text(path) and not tree.text(path).endswith("\n"):
        yield Violation(path, num_lines + 1, "last-line", "end the file with a newline")


def check(tree):
    violations = []
    for path in tree.paths:
        if tree.size(path) > MAX_BYTES:
            violations.append(Violation(path, 1, "file-size", "over 3 MB: make it at test time"))
        if not path.endswith(TEXT) or is_data(path):
            continue
        violations += check_lines(tree, path)
        violations += check_size(tree, path)
        if not path.endswith(".md"):
            violations += check_orphans(tree, path)
        if path.endswith((".h", ".cuh")):
            violations += check_header(tree, path)
    missing = [path for path in LONG_FILES if not os.path.isfile(os.path.join(tree.root, path))]
    violations += [Violation(path, 1, "file-length", "gone: remove it from LONG_FILES")
                   for path in missing]
    return violations


if __name__ == "__main__":
    sys.exit(report(check(SourceTree(sys.argv[1]))))
