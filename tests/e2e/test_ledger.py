"""The report's wire bytes against what Open MPI itself counts.

Its monitoring component writes, per rank and peer, the bytes of messages that programs send (E)
and of those that MPI makes of its own collectives (I). All that is in the ledger is in E. Beyond
that, E has what comes before the ledger is opened and after it is read: the ranks agreeing that
each of them is well, the group of ranks splitting, the reports, the word to stop. A job of one
token has the same and is subtracted. Then steps are left, and E and the ledger are equal to the
byte. I is of MPI's start and end, and does not grow with the work.
"""

import json
import pathlib
import re
import shutil
import subprocess

import support
from support import LLAMA, OPT

LINE = re.compile(r"^([EI])\t(\d+)\t(\d+)\t(\d+) bytes\t(\d+) msgs sent", re.MULTILINE)
MESHES = [(2, 1), (1, 2), (2, 2)]


@support.needs_mpi
class LedgerTest(support.TestCase):

    def setUp(self):
        super().setUp()
        info = shutil.which("ompi_info", path=pathlib.Path(support.MPIEXEC).parent)
        if not info or "MCA pml: monitoring" not in subprocess.run(
                [info], stdout=subprocess.PIPE, text=True, check=True).stdout:
            self.skipTest("this MPI is not an Open MPI with its monitoring component")

    def traffic(self, model, lines, ranks, *flags):
        """Bytes over all ranks: (ledger, MPI_Isend, MPI's collectives)."""
        prompts = self.write("prompts.jsonl", lines)
        report = self.folder / "report.json"
        parameters = {"pml_monitoring_enable": 2, "pml_monitoring_enable_output": 3,
                      "pml_monitoring_filename": self.folder / "sent"}
        monitored = [word for pair in parameters.items() for word in ("--mca", *map(str, pair))]
        launcher, *rest = support.command_line(
            ["run", "--model", model, "--prompts", prompts, "--json", "--ignore-eos",
             "--max-tokens", 8, "--threads", 1, "--report", report, *flags], ranks=ranks)
        with support.Running((), command=[launcher, *monitored, *rest]) as running:
            result = running.wait()
        self.assertEqual(result.exit_code, 0, result)
        counted = {"E": 0, "I": 0}
        for rank in range(ranks):
            text = (self.folder / f"sent.{rank}.prof").read_text()
            for kind, sender, _, size, _ in LINE.findall(text):
                self.assertEqual(int(sender), rank)
                counted[kind] += int(size)
        total = json.loads(report.read_text())["wire"]["total"]
        return total["payload_bytes"] + total["metadata_bytes"], counted["E"], counted["I"]

    def check(self, model, *flags):
        for tp, pp in MESHES:
            self.check_ranks(model, tp * pp, "--tp", tp, "--pp", pp, *flags)

    def check_ranks(self, model, ranks, *flags):
        # Long and short ones, so that steps are full, half full, and of decoding alone.
        lines = [{"token_ids": [2] + [300 + i] * (37 * i % 400)} for i in range(24)]
        small = self.traffic(model, [{"token_ids": [2], "max_tokens": 1}], ranks, *flags)
        large = self.traffic(model, lines, ranks, *flags)
        ledger, sent, internal = (a - b for a, b in zip(large, small, strict=True))
        figures = (f"{model.name} {' '.join(map(str, flags))}: ledger {ledger} bytes, "
                   f"MPI_Isend {sent}, MPI's own {internal}; nothing subtracted "
                   f"{large[1]} / {large[0]} = {large[1] / large[0]:.5f}")
        print(figures)
        self.assertGreater(ledger, 20 * small[1], figures)
        self.assertEqual(sent, ledger, figures)
        self.assertEqual(internal, 0, figures)

    def test_native(self):
        self.check(OPT)

    def test_fp16(self):
        self.check(LLAMA, "--wire", "fp16")

    def test_exact(self):
        self.check(OPT, "--wire", "exact")

    def test_codes_for_everyone(self):
        self.check(LLAMA, "--wire", "one-shot-q5")

    def test_codes_for_owners(self):
        self.check(OPT, "--wire", "token-owner-q4")

    def test_kv_hand_off(self):
        self.check_ranks(OPT, 3, "--prefill-ranks", 2, "--decode-ranks", 1)
        self.check_ranks(LLAMA, 4, "--prefill-ranks", 2, "--decode-ranks", 2, "--pp", 2)


if __name__ == "__main__":
    support.main()
