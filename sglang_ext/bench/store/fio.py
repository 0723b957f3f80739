"""fio, the ceiling: what the disk gives to blocks of a page's size at fio's best setting.

Source: fio 3.33 as Debian packages it; its JSON output is documented in its HOWTO.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext.bench.store.figures import OPS, Op, Sample
from sglang_ext.bench.store.load import Load
from sglang_ext.errors import BenchError, ConfigError

__all__ = ["FIO", "SETTINGS", "Fio", "Setting", "find_fio", "read_report"]

FIO = "fio"

_TIMEOUT_S = 600
# fio takes blocks from malloc. In huge pages there are fewer pages for the kernel to pin: 2,277
# instead of 1,349 MB/s read at 1 MiB (io_uring 2 x 16). A glibc before 2.35 does not know it.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class Setting:
    """How fio submits: its engine, processes, and blocks in flight of each."""

    io_engine: str
    jobs: int
    depth: int

    def __str__(self) -> str:
        return f"{self.io_engine} {self.jobs} x {self.depth}"


SETTINGS = (
    Setting("io_uring", 1, 16),
    Setting("io_uring", 1, 64),
    Setting("io_uring", 2, 16),
    Setting("libaio", 1, 32),
    Setting("libaio", 2, 16),
    Setting("libaio", 8, 4),
    Setting("psync", 8, 1),
    Setting("psync", 16, 1),
)
# So many of them, fastest in the trial, take part in the rounds.
_FINALISTS = 2


def find_fio() -> str:
    """Path of the program.

    Raises:
        ConfigError: it is not installed.
    """
    path = shutil.which("fio")
    if path is None:
        raise ConfigError(
            "fio is not installed, and without it there is no ceiling to compare with; run: "
            "apt-get install fio; or leave it out with --engines"
        )
    return path


class Fio:
    """Blocks of one page size in one folder.

    Reads take blocks in random order from one file that stays; writes fill new files, preallocated,
    one a process, in ascending order, and end with an fsync. Both use O_DIRECT and buffers in huge
    pages.
    """

    def __init__(self, folder: Path, load: Load) -> None:
        self._program = find_fio()
        self._folder = folder
        self.load = load
        self._laid_out = folder / "fio.read"

    def choose(self) -> dict[Op, list[Setting]]:
        """Lay the file for the reads out, try every setting once, and keep the fastest.

        Raises:
            BenchError: no setting worked.
        """
        self._lay_out()
        return {op: self._fastest(op) for op in OPS}

    def _fastest(self, op: Op) -> list[Setting]:
        tried: list[tuple[float, Setting]] = []
        failures = []
        for setting in SETTINGS:
            try:
                tried.append((self.measure(op, setting).mb_s, setting))
            except BenchError as error:  # such as a kernel that refuses io_uring
                failures.append(str(error))
        if not tried:
            raise BenchError(f"fio has no setting that works here: {'; '.join(failures)}")
        tried.sort(key=lambda one: one[0], reverse=True)
        return [setting for _, setting in tried[:_FINALISTS]]

    def measure(self, op: Op, setting: Setting) -> Sample:
        """One pass over the data set.

        Raises:
            BenchError: fio failed.
        """
        job_bytes = self.load.pages // setting.jobs * self.load.page_bytes
        common = [
            f"--bs={self.load.page_bytes}",
            f"--ioengine={setting.io_engine}",
            f"--iodepth={setting.depth}",
            f"--numjobs={setting.jobs}",
            f"--size={job_bytes}",
        ]
        if op == "read":
            return self._run(
                op,
                [
                    *common,
                    "--rw=randread",
                    f"--filename={self._laid_out}",
                    f"--offset_increment={job_bytes}",
                ],
            )
        try:
            return self._run(
                op,
                [*common, "--rw=write", f"--directory={self._folder}", "--end_fsync=1"],
            )
        finally:
            for path in self._folder.glob("bench.*"):
                path.unlink()

    def _lay_out(self) -> None:
        """The file for the reads, with large writes."""
        self._run(
            "write",
            [
                f"--filename={self._laid_out}",
                f"--size={self.load.payload_bytes}",
                "--rw=write",
                "--bs=1M",
                "--ioengine=psync",
                "--end_fsync=1",
            ],
        )

    def _run(self, op: Op, arguments: Sequence[str]) -> Sample:
        command = [
            self._program,
            "--name=bench",
            "--output-format=json",
            "--direct=1",
            "--thread",
            "--group_reporting",
            "--randrepeat=0",
            *arguments,
        ]
        try:
            done = subprocess.run(  # noqa: S603 - our own arguments
                command,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
                env={**os.environ, **_HUGE_PAGES},
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"fio did not end within {_TIMEOUT_S} s: {command}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise BenchError(
                f"fio ended with exit code {done.returncode}: {said[0] if said else 'no message'}"
            )
        return read_report(done.stdout, op)


def read_report(text: str, op: Op) -> Sample:
    """A sample from fio's JSON report of one group.

    CPU seconds are those that fio counts for its jobs; its own start is not in them. Latencies are
    of one block, from submission to completion.

    Raises:
        BenchError: not a report, or blocks failed.
    """
    try:
        # Warnings may stand before the object.
        (job,) = json.loads(text[text.index("{") :])["jobs"]
        figures: dict[str, Any] = job[op]
        if job["error"]:
            raise BenchError(f"fio reports error {job['error']} for {op}")
        latency = figures["clat_ns"]["percentile"]
        return Sample(
            payload_bytes=int(figures["io_bytes"]),
            seconds=figures["io_bytes"] / figures["bw_bytes"],
            cpu_s=(job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000,
            p50_ms=latency["50.000000"] / 1e6,
            p99_ms=latency["99.000000"] / 1e6,
        )
    except (ValueError, KeyError, ZeroDivisionError) as error:
        raise BenchError(f"fio's report cannot be read ({error!r}): {text[:200]}") from error
