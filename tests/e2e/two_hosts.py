"""Two hosts on one machine: ranks in two network namespaces with a slow link between them.

As a program, it compares wire strategies over such a link:
  python3 two_hosts.py --binary B --model DIR --wires fp16,native --rate 1gbit,10gbit
prints the time per token of each, and what the link was measured to be. Needs root, Linux, Open
MPI and the packages iproute2 and ethtool.

Every namespace is a host to MPI: a host name, an address and an interface `wire0` of its own.
mpirun runs in the first and starts the rank of the second through a script that enters it, in ssh's
place. Ranks reach each other by TCP over the link and no other way.

The link is a pair of virtual Ethernet interfaces. Each end shapes what it sends: by netem, or,
where the kernel lacks that, by tbf (rate) and by delivering what arrives at the ticks of a timer,
as network cards that save interrupts do (delay). tbf lets the first BURST_US of a message pass at
once. A machine may be too slow for a rate: see TwoHosts.measure.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import unittest

import support

INTERFACE = "wire0"
ADDRESSES = ("10.91.0.1", "10.91.0.2")
PORT = 5000

# An IPv4 packet of an established TCP connection on Linux, whose segments carry timestamps.
MTU = 1500
PACKET_HEADERS = 14 + 20 + 20 + 12  # Ethernet, IP, TCP, TCP's timestamps
SEGMENT = MTU - (PACKET_HEADERS - 14)  # 1448 bytes of the stream
# Open MPI 4.1 before each message: 8 bytes of its TCP transport, 16 of its matching.
MESSAGE_HEADER = 24

# An answer to what the timer delivered is late by its period and this: waking up, and work.
TIMER_LATENCY_US = 20
# tbf lets pass at once what comes in this time: it wakes up no more often.
BURST_US = 50

_NAME = re.compile(r"thinwire-(\d+)-\d+[ab]")
_RATE = re.compile(r"([\d.]+)([kmg]?)bit")
_numbers = itertools.count()


def _call(*words):
    """Runs a command and returns its output; OSError where it fails."""
    done = subprocess.run(list(map(str, words)), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _delete_namespace(name):
    """And the processes in it, and the folder named after it."""
    with contextlib.suppress(OSError):
        for pid in _call("ip", "netns", "pids", name).split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(OSError):
        _call("ip", "netns", "del", name)
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{name}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _delete_left_behind():
    """Removes what programs left that were killed before they could."""
    for line in _call("ip", "netns", "list").splitlines():
        match = _NAME.match(line)
        if match and not pathlib.Path(f"/proc/{match[1]}").exists():
            _delete_namespace(match[0])


def _burst(rate):
    """Bytes of tbf's bucket for a rate in tc's words."""
    number, unit = _RATE.fullmatch(rate).groups()
    bits_per_s = float(number) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[unit]
    return max(3 * (MTU + 14), int(bits_per_s / 8 * BURST_US / 1e6))


class TwoHosts:
    """Two namespaces and the link; they vanish when the context is left.

    rate: as tc writes it ("1gbit"), or None for what the machine can do; delay_us: one way. Skips
    the test (unittest.SkipTest) where the machine lets us have no such thing.
    """

    def __init__(self, rate="1gbit", delay_us=50):
        self.rate = rate
        self.delay_us = delay_us
        self.shaper = ""  # "netem" or "tbf"
        number = next(_numbers)
        self.names = [f"thinwire-{os.getpid()}-{number}{letter}" for letter in "ab"]
        self._agent = None

    def __enter__(self):
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            raise unittest.SkipTest("network namespaces need Linux and root")
        for tool in ("ip", "tc", "ethtool", "unshare"):
            if not shutil.which(tool):
                raise unittest.SkipTest(f"no program {tool}")
        try:
            self._create()
            self.set_link(self.rate, self.delay_us)
        except OSError as error:
            self.__exit__()
            raise unittest.SkipTest(f"no two hosts on this machine: {error}") from None
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            _delete_namespace(name)

    def _create(self):
        _delete_left_behind()
        for name in self.names:
            _call("ip", "netns", "add", name)
        _call("ip", "link", "add", INTERFACE, "netns", self.names[0], "type", "veth",
              "peer", "name", INTERFACE, "netns", self.names[1])
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _call("ip", "-n", name, "link", "set", "lo", "up")
            # No IPv6: it would send on its own.
            _call("ip", "-n", name, "link", "set", INTERFACE, "mtu", MTU, "addrgenmode", "none")
            _call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            _call("ip", "-n", name, "link", "set", INTERFACE, "up")
            # Packets of the MTU on the link, so that they are counted as such.
            self._in(name, "ethtool", "-K", INTERFACE, "tso", "off")
            self._in(name, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_timestamps")
        self._agent = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.names[0]}-")) / "agent"
        cases = "".join(f"  {address}) namespace={name} ;;\n"
                        for address, name in zip(ADDRESSES, self.names, strict=True))
        self._agent.write_text(
            "#!/bin/sh\n"
            "# Runs a command on a host: agent ADDRESS COMMAND...\n"
            f'case $1 in\n{cases}  *) echo "no host $1" >&2; exit 1 ;;\nesac\n'
            "shift\n"
            "exec ip netns exec $namespace unshare --uts sh -c "
            "'hostname $0; exec sh -c \"$*\"' $namespace \"$@\"\n")
        self._agent.chmod(0o755)

    @staticmethod
    def _in(name, *words):
        return _call("ip", "netns", "exec", name, *words)

    def set_link(self, rate, delay_us):
        """Shapes both directions anew."""
        self.rate, self.delay_us = rate, delay_us
        for name in self.names:
            netem = ["netem", "delay", f"{delay_us}us", "limit", "100000"]
            try:
                self._shape(name, *netem, *(["rate", rate] if rate else []))
                self.shaper = "netem"
            except OSError:
                self._shape_without_netem(name, rate, delay_us)
                self.shaper = "tbf"

    def _shape(self, name, *qdisc):
        self._in(name, "tc", "qdisc", "replace", "dev", INTERFACE, "root", *qdisc)

    def _shape_without_netem(self, name, rate, delay_us):
        if rate:
            self._shape(name, "tbf", "rate", rate, "burst", _burst(rate), "limit", 16 << 20)
        else:
            self._shape(name, "pfifo", "limit", "10000")
        period_us = max(0, delay_us - TIMER_LATENCY_US)
        # The interface has the timer only when it merges packets.
        self._in(name, "ethtool", "-K", INTERFACE, "gro", "on" if period_us else "off")
        settings = {"napi_defer_hard_irqs": 1 << 30 if period_us else 0,
                    "gro_flush_timeout": period_us * 1000}
        for key, value in settings.items():
            self._in(name, "sh", "-c", f"echo {value} > /sys/class/net/{INTERFACE}/{key}")

    def counters(self):
        """What the interfaces have sent, both together: (bytes, packets). Ethernet headers are
        included unless the timer is on: the kernel then counts packets after it took them off."""
        sent = [[int(self._in(name, "cat", f"/sys/class/net/{INTERFACE}/statistics/{what}"))
                 for name in self.names] for what in ("tx_bytes", "tx_packets")]
        return tuple(map(sum, sent))

    def command(self, command, mca=()):
        """The command line that runs `command` as one rank on each host. `mca`: pairs of Open MPI's
        parameters."""
        parameters = [("plm", "rsh"), ("plm_rsh_agent", self._agent),
                      ("oob_tcp_if_include", INTERFACE), ("pml", "ob1"), ("btl", "tcp,self"),
                      ("btl_tcp_if_include", INTERFACE), *mca]
        return [str(word) for word in (
            "ip", "netns", "exec", self.names[0], "unshare", "--uts", "sh", "-c",
            'hostname $0; exec "$@"', self.names[0],
            support.MPIEXEC or "mpirun", "-np", len(ADDRESSES),
            "--host", ",".join(f"{address}:1" for address in ADDRESSES),
            # Each host takes all cores for its own.
            "--bind-to", "none",
            *(word for pair in parameters for word in ("--mca", *pair)), *command)]

    def run(self, args, timeout=None, **streams):
        """Runs thinwire, one rank on each host; see support.Running.wait."""
        if not support.BINARY:
            raise unittest.SkipTest("THINWIRE_BINARY names no program")
        with support.Running(args, command=self.command([support.BINARY, *args]),
                             **streams) as running:
            return running.wait(timeout)

    def measure(self, megabytes=64):
        """(median round trip of a few bytes in us, Gbit/s of a TCP stream)."""
        def python(name, call):
            return subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-B", "-c",
                 f"import two_hosts; two_hosts.{call}"],
                cwd=pathlib.Path(__file__).resolve().parent, stdout=subprocess.PIPE, text=True)

        with python(self.names[1], "_answer()") as server:
            if server.stdout.readline() != "ready\n":
                raise AssertionError("the second host does not listen")
            with python(self.names[0], f"_ask({megabytes})") as client:
                round_trip, rate = map(float, client.stdout.readline().split())
        return round_trip, rate


_TRIPS = 500


def _answer():
    with socket.create_server((ADDRESSES[1], PORT)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_TRIPS):
            connection.sendall(connection.recv(64))
        while connection.recv(1 << 20):
            pass


def _ask(megabytes):
    with socket.create_connection((ADDRESSES[1], PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(_TRIPS):
            start = time.perf_counter()
            connection.sendall(bytes(64))
            connection.recv(64)
            trips.append(time.perf_counter() - start)
        data = bytes(1 << 20)
        start = time.perf_counter()
        for _ in range(megabytes):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        seconds = time.perf_counter() - start
    print(statistics.median(trips) * 1e6, megabytes * (8 << 20) / seconds / 1e9)


class Comparison:
    """Times strategies over the link, in turns, so that what else the machine does hits all."""

    def __init__(self, flags):
        self._flags = flags
        # (rate, wire, phase) -> milliseconds per token, one of each round.
        self.times = {}

    def _bench(self, hosts, wire, *args):
        result = hosts.run(["bench", "engine", "--model", self._flags.model, "--wire",
                            wire, "--tp", self._flags.tp, "--pp", self._flags.pp,
                            "--dtype", self._flags.dtype, "--threads", self._flags.threads,
                            "--repeats", self._flags.repeats, "--log-level", "error", "--json",
                            *args], timeout=3600)
        if result.exit_code != 0:
            raise SystemExit(str(result))
        line, = result.lines
        return line

    def _prefill(self, hosts, wire):
        line = self._bench(hosts, wire, "--prompt-tokens", self._flags.prefill_tokens,
                           "--max-step-tokens", self._flags.prefill_tokens, "--new-tokens", 4)
        return line["prefill"]["ms"] / line["prefill"]["tokens"]

    def _decode(self, hosts, wire, batch):
        line = self._bench(hosts, wire, "--prompt-tokens", 16, "--batch", batch, "--new-tokens", 48)
        return line["decode"]["ms_per_step"] / batch

    def run_rate(self, hosts, rate):
        hosts.set_link(rate, self._flags.delay_us)
        links = [hosts.measure()]
        phases = [("prefill", lambda wire: self._prefill(hosts, wire))]
        for batch in self._flags.decode_batch:
            phases.append((f"decode x{batch}",
                           lambda wire, batch=batch: self._decode(hosts, wire, batch)))
        for turn in range(self._flags.rounds):
            order = self._flags.wires[::-1] if turn % 2 else self._flags.wires
            for phase, measure in phases:
                for wire in order:
                    self.times.setdefault((rate, wire, phase), []).append(measure(wire))
                    print(f"{rate} {wire} {phase}: {self.times[rate, wire, phase][-1]:.4f} ms",
                          file=sys.stderr, flush=True)
        links.append(hosts.measure())
        self._print(hosts, rate, [name for name, _ in phases], links)

    def _print(self, hosts, rate, phases, links):
        seen = "; ".join(f"round trip {trip:.0f} us, {speed:.2f} Gbit/s" for trip, speed in links)
        print(f"\n{rate or 'no limit'}, {hosts.delay_us} us one way by {hosts.shaper}; measured "
              f"before and after: {seen}\n")
        print(f"| ms per token, median of {self._flags.rounds} (least-most) | "
              + " | ".join(phases) + " |")
        print("|---" * (len(phases) + 1) + "|")
        for wire in self._flags.wires:
            cells = []
            for phase in phases:
                times = self.times[rate, wire, phase]
                cells.append(f"{statistics.median(times):.4f} ({min(times):.4f}-{max(times):.4f})")
            print(f"| {wire} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Compares wire strategies between two hosts")
    parser.add_argument("--binary", default=support.BINARY, help="the program thinwire")
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--wires", default="fp16,native", help="strategies of --wire, and native")
    parser.add_argument("--rate", default="1gbit,10gbit", help="as tc writes it; none: no limit")
    parser.add_argument("--delay-us", type=int, default=50, help="one way")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2),
                        help="of each rank")
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--decode-batch", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=3, help="jobs of which medians are taken")
    parser.add_argument("--repeats", type=int, default=3, help="of each job")
    parser.add_argument("--json", metavar="FILE", help="writes all times, too")
    flags = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without cleaning up
    support.BINARY = str(pathlib.Path(flags.binary).resolve())
    flags.wires = flags.wires.split(",")
    flags.decode_batch = [int(batch) for batch in flags.decode_batch.split(",") if batch]
    rates = [None if rate == "none" else rate for rate in flags.rate.split(",")]
    for rate in rates:
        if rate and not _RATE.fullmatch(rate):
            parser.error(f"--rate {rate}: expected none or a rate such as 1gbit")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    comparison = Comparison(flags)
    try:
        with TwoHosts() as hosts:
            for rate in rates:
                comparison.run_rate(hosts, rate)
    except unittest.SkipTest as reason:
        raise SystemExit(f"two_hosts.py: {reason}") from None
    if flags.json:
        pathlib.Path(flags.json).write_text(json.dumps(
            [{"rate": rate, "wire": wire, "phase": phase, "ms_per_token": times}
             for (rate, wire, phase), times in comparison.times.items()]) + "\n")


if __name__ == "__main__":
    main()
