"""Runs the thinwire program for the end-to-end tests: Python 3.11, standard library only.

From the environment: THINWIRE_BINARY, the program; MPIEXEC, the launcher, empty in a build without
MPI; THINWIRE_SANITIZE, the sanitizers of the build, if any; THINWIRE_MODELS, a folder of larger
models, if there is one (and THINWIRE_EVAL, texts; otherwise the folder eval beside it).
"""

import atexit
import collections
import json
import os
import pathlib
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import uuid

NANO_MODELS = pathlib.Path(__file__).resolve().parent.parent / "models"
OPT = NANO_MODELS / "opt-nano"
LLAMA = NANO_MODELS / "llama-nano"

BINARY = os.environ.get("THINWIRE_BINARY", "")
MPIEXEC = os.environ.get("MPIEXEC", "")
SANITIZERS = os.environ.get("THINWIRE_SANITIZE", "")
MODELS = os.environ.get("THINWIRE_MODELS", "")

# What a job remembers for the next is not the user's concern here.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="thinwire-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

SKIPPED = 77  # ctest's SKIP_RETURN_CODE
# Sanitized programs are slow, and slower on a loaded machine.
PATIENCE = 6 if SANITIZERS else 1
# A hang, not a slow machine: no command of these tests takes half as long.
TIMEOUT_S = 120 * PATIENCE
# How long processes of an ended run may take to vanish.
LEFTOVER_GRACE_S = 5 * PATIENCE
MARK = "THINWIRE_E2E_RUN"

needs_mpi = unittest.skipUnless(MPIEXEC, "this build has no MPI")
needs_models = unittest.skipUnless(MODELS, "THINWIRE_MODELS names no folder of models")
too_slow_sanitized = unittest.skipIf(SANITIZERS, "too long for a sanitizer build")


def larger_model(name):
    """The folder of a model of THINWIRE_MODELS; skips the test where it is not there."""
    folder = pathlib.Path(MODELS) / name
    if not MODELS or not (folder / "config.json").is_file():
        raise unittest.SkipTest(f"THINWIRE_MODELS holds no {name}")
    return folder


def evaluation_text(name):
    """A file of evaluation text; skips the test where it is not there."""
    folder = os.environ.get("THINWIRE_EVAL") or (pathlib.Path(MODELS) / ".." / "eval")
    file = pathlib.Path(folder) / name
    if not MODELS or not file.is_file():
        raise unittest.SkipTest(f"no evaluation text {file}")
    return file.resolve()


class Result:
    """What a command did. Text that is no UTF-8 shows as replacement characters."""

    def __init__(self, command, exit_code, stdout, stderr, seconds):
        self.command = command
        self.exit_code = exit_code
        self.stdout = stdout.decode("utf-8", "replace")
        self.stderr = stderr.decode("utf-8", "replace")
        self.seconds = seconds

    @property
    def errors(self):
        """The program's own error lines; mpirun's words are its own."""
        return [line for line in self.stderr.splitlines() if line.startswith("thinwire: ")]

    @property
    def lines(self):
        return [json.loads(line) for line in self.stdout.splitlines()]

    def __str__(self):
        return (f"{' '.join(map(str, self.command))}\nexit code {self.exit_code} after "
                f"{self.seconds:.1f} s\nstdout: {self.stdout[-2000:]}\nstderr: "
                f"{self.stderr[-4000:]}")


def command_line(args, ranks=0):
    """The command that runs thinwire with `args`: alone, or on `ranks` ranks under mpirun."""
    if not BINARY:
        raise unittest.SkipTest("THINWIRE_BINARY names no program")
    launcher = [MPIEXEC, "--oversubscribe", "-np", str(ranks)] if ranks else []
    return [*launcher, BINARY, *map(str, args)]


def idle_bytes():
    """The most memory that the program has resident when it does nothing: its code and libraries
    (a build with CUDA has large ones)."""
    process = subprocess.Popen(command_line(["--version"]), stdout=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return usage.ru_maxrss * 1024


class Running:
    """A command in a process group of its own, and all that it starts, known by a mark in the
    environment. Leaving the context kills what is left."""

    def __init__(self, args, ranks=0, stdin=subprocess.DEVNULL, stdout=None, stderr=None, env=None,
                 command=None):
        self.command = command or command_line(args, ranks)
        self.mark = f"{MARK}={uuid.uuid4()}"
        self.start = time.monotonic()
        self._files = [tempfile.TemporaryFile() for _ in range(2)]
        environment = dict(os.environ)
        environment.update(env or {})
        name, value = self.mark.split("=")
        environment[name] = value
        self.process = subprocess.Popen(
            self.command, stdin=stdin, env=environment, start_new_session=True,
            stdout=self._files[0] if stdout is None else stdout,
            stderr=self._files[1] if stderr is None else stderr)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        for file in self._files:
            file.close()

    def processes(self):
        """Ids of the run's living processes."""
        mark = self.mark.encode()
        found = []
        for folder in pathlib.Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                # Those that have ended but were not waited for have no environment.
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                pass
        return sorted(found)

    def rank_process(self, rank):
        """The id of the process that is `rank`, or None as long as there is none."""
        wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
        for pid in self.processes():
            try:
                if wanted in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    return pid
            except OSError:
                pass
        return None

    def wait(self, timeout=None):
        """Waits for the end. A hang is an AssertionError, and so is a process left running."""
        timeout = TIMEOUT_S if timeout is None else timeout
        try:
            self.process.wait(max(0.0, self.start + timeout - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end within {timeout} s: {self.result()}") from None
        result = self.result()
        give_up = time.monotonic() + LEFTOVER_GRACE_S
        while left := self.processes():
            if time.monotonic() > give_up:
                self.kill()
                raise AssertionError(f"processes {left} outlived their job: {result}")
            time.sleep(0.05)
        return result

    def output(self):
        """Standard output and error so far, where they were not given."""
        texts = []
        for file in self._files:
            texts.append(os.pread(file.fileno(), 1 << 28, 0))
        return texts

    def result(self):
        return Result(self.command, self.process.poll(), *self.output(),
                      time.monotonic() - self.start)

    def kill(self):
        for _ in range(100):
            pids = self.processes()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            if self.process.poll() is None:
                self.process.kill()
            elif not pids:
                return
            time.sleep(0.02)


def run(args, ranks=0, timeout=None, **streams):
    """Runs thinwire to its end; see Running.wait for what is an AssertionError."""
    # mpirun gives ranks a second more once one has ended with an error. They need none: each waits
    # for the others before it leaves.
    environment = {"OMPI_MCA_odls_base_sigkill_timeout": "0", **(streams.pop("env", None) or {})}
    with Running(args, ranks, env=environment, **streams) as running:
        return running.wait(timeout)


def on_terminal(args):
    """Runs with standard error on a terminal; what was drawn there, and the result."""
    master, slave = pty.openpty()
    drawn = b""
    try:
        with Running(args, stderr=slave) as running:
            os.close(slave)
            while True:
                ready, _, _ = select.select([master], [], [], TIMEOUT_S)
                if not ready:
                    raise AssertionError(f"nothing drawn for {TIMEOUT_S} s: {running.result()}")
                try:
                    piece = os.read(master, 65536)
                except OSError:  # no process has the terminal any more
                    break
                if not piece:
                    break
                drawn += piece
            return drawn.decode("utf-8", "replace"), running.wait()
    finally:
        os.close(master)


class TestCase(unittest.TestCase):
    """A test with a temporary folder."""

    maxDiff = None

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-e2e-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def write(self, name, content):
        """Writes text, bytes, or a list of JSON values, one per line."""
        path = self.folder / name
        if isinstance(content, list):
            content = "".join(json.dumps(line) + "\n" for line in content)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)
        return path

    def copy_model(self, source=OPT):
        """A copy of a model folder, to be damaged."""
        target = self.folder / f"{source.name}-{uuid.uuid4().hex[:8]}"
        target.mkdir()
        for file in source.iterdir():
            shutil.copyfile(file, target / file.name)
        return target

    def succeed(self, args, ranks=0, **kwargs):
        result = run(args, ranks, **kwargs)
        self.assertEqual(result.exit_code, 0, result)
        self.assertEqual(result.errors, [], result)
        return result

    def check_error(self, result, exit_code, *parts):
        """One line says why, and its words are there. Returns the line."""
        self.assertEqual(result.exit_code, exit_code, result)
        self.assertEqual(len(result.errors), 1, result)
        for part in parts:
            self.assertIn(str(part), result.errors[0], result)
        return result.errors[0]

    def fail_alike(self, args, exit_code, *parts, parallel=("--tp", "2"), stdout="", ranks=True):
        """The command fails in the same words on one rank and (if `ranks`) on two under mpirun."""
        alone = run(args)
        line = self.check_error(alone, exit_code, *parts)
        self.assertEqual(alone.stdout, stdout, alone)
        if MPIEXEC and ranks:
            together = run([*args, *parallel], ranks=2)
            self.assertEqual(self.check_error(together, exit_code, *parts), line)
            self.assertEqual(together.stdout, stdout, together)
        return line


class QuantizeTestCase(TestCase):
    """A test with texts to calibrate on and to evaluate, and the smallest work that does all."""

    WINDOWS = 4
    SEQLEN = 64

    def setUp(self):
        super().setUp()
        text = (NANO_MODELS.parent.parent / "LICENSE").read_text()
        self.calibration = self.write("calibration.txt", text[:len(text) // 2])
        self.evaluation = self.write("evaluation.txt", text[len(text) // 2:])

    def quantize_args(self, model, out, *flags, calib=None):
        """`flags` say what becomes of the model; later ones win."""
        args = {"--nsamples": self.WINDOWS, "--seqlen": self.SEQLEN, "--group-size": 32,
                "--threads": 1, "--log-level": "error"}
        args.update(zip(flags[::2], flags[1::2]))
        return ["quantize", "--model", model, "--out", out, "--calib", calib or self.calibration,
                *(word for pair in args.items() for word in pair)]

    def quantize(self, model, *flags, name="quantized", ranks=0, **kwargs):
        """Quantises into a folder of this test, and returns that."""
        out = self.folder / name
        result = self.succeed(self.quantize_args(model, out, *flags, **kwargs), ranks)
        self.assertEqual(len(result.stdout.splitlines()), 1, result)
        self.assertTrue(result.stdout.startswith(f"{out}: "), result)
        self.assertFalse(partial(out).exists(), result)
        return out

    def perplexity(self, model, *flags, ranks=0):
        line, = self.succeed(["eval", "--model", model, "--text", self.evaluation, "--window",
                              self.SEQLEN, "--json", *flags], ranks).lines
        return line["perplexity"]


def partial(out):
    """Where a quantisation works until it is done."""
    return out.with_name(out.name + ".partial")


def contents(folder):
    """All files of a folder and their bytes, by path."""
    return {str(file.relative_to(folder)): file.read_bytes()
            for file in sorted(folder.rglob("*")) if file.is_file()}


class Safetensors:
    """A safetensors file in parts, to be put together wrongly."""

    def __init__(self, path):
        self.path = path
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        self.header = json.loads(data[8:8 + length], object_pairs_hook=collections.OrderedDict)
        self.data = data[8 + length:]

    def save(self):
        self.save_header(json.dumps(self.header).encode())

    def save_header(self, header, length=None):
        self.path.write_bytes(
            struct.pack("<Q", len(header) if length is None else length) + header + self.data)


def edit_json(path, **changes):
    """Sets members of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    for key, change in changes.items():
        if change is None:
            value.pop(key, None)
        else:
            value[key] = change
    path.write_text(json.dumps(value))


def main():
    """Runs the tests of the calling file; exit code 77 where all were skipped."""
    program = unittest.main(exit=False, verbosity=2)
    result = program.result
    for test, reason in result.skipped:
        print(f"SKIPPED {test}: {reason}")
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(SKIPPED if result.testsRun == len(result.skipped) else 0)
