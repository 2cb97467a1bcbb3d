"""A disk that fills up while the report is written, where the test may mount one."""

import ctypes
import ctypes.util
import os

import support
from support import OPT


def mount_small_disk(folder):
    """Mounts one page of memory as a disk; why it could not, or None."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=4k") == 0:
        return None
    return os.strerror(ctypes.get_errno())


class FullDiskTest(support.TestCase):

    def setUp(self):
        super().setUp()
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        problem = mount_small_disk(self.disk)
        if problem:
            self.skipTest(f"mounting a small disk: {problem}")
        self.addCleanup(ctypes.CDLL(None).umount2, os.fsencode(self.disk), 2)  # MNT_DETACH

    def test_a_report_onto_a_full_disk(self):
        (self.disk / "filler").write_bytes(b"x" * 4096)
        report = self.disk / "r.json"
        args = ["run", "--model", OPT, "--prompt", "The", "--max-tokens", "4", "--report", report]
        for ranks in (0, 2 if support.MPIEXEC else 0):
            result = support.run([*args, "--tp", max(ranks, 1)], ranks=ranks)
            self.check_error(result, 1, report, "No space left")
            self.assertEqual([file.name for file in self.disk.iterdir()], ["filler"])

    def test_a_report_stays_when_the_next_has_no_room(self):
        report = self.disk / "r.json"
        report.write_text("old" + " " * 4000)
        args = ["run", "--model", OPT, "--prompt", "The", "--max-tokens", "4", "--report", report]
        self.check_error(support.run(args), 1, report, "No space left")
        self.assertTrue(report.read_text().startswith("old"))
        self.assertEqual([file.name for file in self.disk.iterdir()], ["r.json"])


if __name__ == "__main__":
    support.main()
