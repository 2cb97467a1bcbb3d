"""A disk that fills up while the program writes, where the test may mount one."""

import ctypes
import ctypes.util
import os
import shutil

import support
from support import OPT


def mount_small_disk(folder, size):
    """Mounts some memory as a disk; why it could not, or None."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()) == 0:
        return None
    return os.strerror(ctypes.get_errno())


class FullDisk:
    """A disk of SIZE bytes, a multiple of a page, at self.disk."""

    def setUp(self):
        super().setUp()
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        problem = mount_small_disk(self.disk, self.SIZE)
        if problem:
            self.skipTest(f"mounting a small disk: {problem}")
        self.addCleanup(ctypes.CDLL(None).umount2, os.fsencode(self.disk), 2)  # MNT_DETACH


class ReportTest(FullDisk, support.TestCase):

    SIZE = 4096

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


class QuantizeTest(FullDisk, support.QuantizeTestCase):
    """A layer of opt-nano takes 130 kB, all of it 1.1 MB."""

    SIZE = 2 << 20

    def fill(self, free):
        (self.disk / "filler").write_bytes(b"x" * (self.SIZE - free))

    def fail_quantize(self, free):
        self.fill(free)
        out = self.disk / "out"
        for ranks in (0, 2 if support.MPIEXEC else 0):
            args = self.quantize_args(OPT, out, "--scheme", "w4a16")
            self.check_error(support.run(args, ranks), 1, out, "No space left")
            self.assertFalse(out.exists())
        return out

    def test_no_room_for_a_layer(self):
        for free in (0, 1 << 16):
            self.fail_quantize(free)
            self.assertEqual([file.name for file in self.disk.iterdir()], ["filler"])

    def test_room_for_some_layers(self):
        whole = support.contents(self.quantize(OPT, "--scheme", "w4a16"))
        # In the middle of the layers, of the embeddings, and of the index.
        for free in (400_000, 700_000, sum(map(len, whole.values())) - 60_000):
            with self.subTest(free=free):
                out = self.fail_quantize(free)
                left = [file.name for file in support.partial(out).iterdir()]
                self.assertIn("model-00001-of-00005.safetensors", left)
                self.assertFalse([name for name in left if ".tmp." in name])
                # With more room the same command goes on.
                self.fill(self.SIZE)
                self.succeed(self.quantize_args(OPT, out, "--scheme", "w4a16"))
                self.assertEqual(support.contents(out), whole)
                shutil.rmtree(out)


if __name__ == "__main__":
    support.main()
