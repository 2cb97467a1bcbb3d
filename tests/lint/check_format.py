"""Checks that sources are as clang-format leaves them. Skipped without the version we use, because
versions disagree.

usage: check_format.py ROOT
"""

import re
import shutil
import subprocess
import sys

from source_tree import SKIPPED, SourceTree, Violation, report

VERSION = 14


def find_clang_format():
    """The program, or None."""
    for name in (f"clang-format-{VERSION}", "clang-format"):
        program = shutil.which(name)
        if program:
            version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
            if re.search(rf"version {VERSION}\.", version):
                return program
    return None


def check(tree, clang_format):
    paths = tree.with_suffix(".h", ".cc", ".cu", ".cuh")
    found = subprocess.run([clang_format, "--dry-run", "--style=file", *paths], cwd=tree.root,
                           capture_output=True, text=True)
    first = {}
    for match in re.finditer(r"^(\S+?):(\d+):\d+: warning: code should be clang-formatted",
                             found.stderr, re.MULTILINE):
        first.setdefault(match[1], int(match[2]))
    if found.returncode != 0 and not first:
        sys.exit(f"clang-format failed: {found.stderr}")
    return [Violation(path, line, "format", "run clang-format -i on it")
            for path, line in first.items()]


if __name__ == "__main__":
    program = find_clang_format()
    if program is None:
        print(f"skipped: no clang-format {VERSION} here")
        sys.exit(SKIPPED)
    sys.exit(report(check(SourceTree(sys.argv[1]), program)))
