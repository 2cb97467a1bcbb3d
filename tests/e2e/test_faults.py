"""Ranks that die or hang in the middle of a run: the whole job ends, soon, and nothing is left."""

import os
import signal
import time

import support
from support import OPT

# The promise. Measured from the fault to the end of mpirun.
BOUND_S = 10 * support.PATIENCE

# Runs until it is ended: hours.
ENDLESS = [{"id": i, "token_ids": [5, i % 1000], "max_tokens": 400} for i in range(20000)]


@support.needs_mpi
class FaultTest(support.TestCase):

    def start(self, tp, pp, *flags):
        return self.start_ranks(tp * pp, "--tp", tp, "--pp", pp, *flags)

    def start_ranks(self, ranks, *flags):
        """A run with answers coming out of it."""
        prompts = self.write("endless.jsonl", ENDLESS)
        running = support.Running(["run", "--model", OPT, "--prompts", prompts, "--json",
                                   "--ignore-eos", *flags], ranks=ranks)
        self.addCleanup(running.__exit__)
        give_up = time.monotonic() + support.TIMEOUT_S
        while not running.output()[0]:
            self.assertIsNone(running.process.poll(), running.result())
            self.assertLess(time.monotonic(), give_up, running.result())
            time.sleep(0.05)
        return running

    def end(self, running, fault):
        """Lets `fault` happen, and waits for the end of the job."""
        fault()
        start = time.monotonic()
        result = running.wait(start - running.start + support.TIMEOUT_S)
        self.assertLess(time.monotonic() - start, BOUND_S, result)
        self.assertNotEqual(result.exit_code, 0, result)
        for line in result.stdout.splitlines()[:-1]:
            self.assertTrue(line.startswith("{") and line.endswith("}"), line)
        return result

    def signal_rank(self, running, rank, number):
        pid = running.rank_process(rank)
        self.assertIsNotNone(pid, running.result())
        return lambda: os.kill(pid, number)


class EveryRank:
    """Calls check(tp, pp, rank) for each place that a rank can have."""

    def test_the_leader_of_two(self):
        self.check(2, 1, 0)

    def test_the_other_of_two(self):
        self.check(2, 1, 1)

    def test_the_last_stage_of_two(self):
        self.check(1, 2, 1)

    def test_the_leader_of_four(self):
        self.check(2, 2, 0)

    def test_the_middle_of_four(self):
        self.check(2, 2, 1)

    def test_the_sampling_rank_of_four(self):
        self.check(2, 2, 2)

    def test_the_last_of_four(self):
        self.check(2, 2, 3)


class KillTest(EveryRank, FaultTest):

    def check(self, tp, pp, rank):
        running = self.start(tp, pp)
        result = self.end(running, self.signal_rank(running, rank, signal.SIGKILL))
        self.assertIn("signal 9", result.stderr)


class HangTest(EveryRank, FaultTest):

    def check(self, tp, pp, rank):
        running = self.start(tp, pp, "--step-timeout", "2")
        result = self.end(running, self.signal_rank(running, rank, signal.SIGSTOP))
        self.assertEqual(result.exit_code, 1, result)
        # Rank 0 says why. Where it is the one that is stopped, the others do, all at once on a slow
        # machine; and mpirun lets a stopped rank go on for a moment before it ends it.
        self.assertGreaterEqual(len(result.errors), 1, result)
        self.assertLessEqual(len(result.errors), tp * pp if rank == 0 else 1, result)
        # Not always the one that hangs: those that wait for its neighbours give up as soon.
        self.assertRegex(result.errors[0], r"rank \d", result)


class SplitTest(FaultTest):
    """Groups of ranks, one that prefills and one that decodes."""

    FLAGS = ["--prefill-ranks", "2", "--decode-ranks", "2", "--step-timeout", "2"]

    def check(self, rank, number):
        running = self.start_ranks(4, *self.FLAGS)
        result = self.end(running, self.signal_rank(running, rank, number))
        if number == signal.SIGKILL:
            self.assertIn("signal 9", result.stderr)
        else:
            self.assertEqual(result.exit_code, 1, result)
            self.assertEqual(len(result.errors), 1, result)
            self.assertRegex(result.errors[0], r"rank \d", result)

    def test_a_lost_rank_of_either_group_ends_both(self):
        for rank in range(4):
            with self.subTest(rank=rank):
                self.check(rank, signal.SIGKILL)

    def test_a_rank_that_hangs_ends_both_groups(self):
        for rank in (1, 2):
            with self.subTest(rank=rank):
                self.check(rank, signal.SIGSTOP)


class SignalTest(FaultTest):
    """The user ends mpirun."""

    def check(self, number, report=()):
        running = self.start(2, 2, *report)
        self.end(running, lambda: running.process.send_signal(number))

    def test_interrupt(self):
        self.check(signal.SIGINT)

    def test_terminate(self):
        self.check(signal.SIGTERM)

    def test_hang_up(self):
        self.check(signal.SIGHUP)

    def test_kill(self):
        self.check(signal.SIGKILL)

    def test_no_half_written_report_is_left(self):
        self.check(signal.SIGTERM, ["--report", self.folder / "r.json"])
        self.assertEqual([file.name for file in self.folder.iterdir()], ["endless.jsonl"])


class OneProcessTest(support.TestCase):
    """Without mpirun."""

    def check(self, number):
        prompts = self.write("endless.jsonl", ENDLESS)
        with support.Running(["run", "--model", OPT, "--prompts", prompts, "--json"]) as running:
            while not running.output()[0]:
                self.assertIsNone(running.process.poll(), running.result())
                time.sleep(0.05)
            running.process.send_signal(number)
            self.assertEqual(running.wait().exit_code, -number)

    def test_interrupt(self):
        self.check(signal.SIGINT)

    def test_terminate(self):
        self.check(signal.SIGTERM)


if __name__ == "__main__":
    support.main()
