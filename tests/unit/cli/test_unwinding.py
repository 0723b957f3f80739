"""A polite end from outside unwinds every benchmark, and with it what it has started."""

import os
import signal
import time

import click
import pytest
from click.testing import CliRunner

from sglang_ext.cli.bench import bench


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_unwinds_a_benchmark(monkeypatch):
    undone = []

    @click.command()
    def probe():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            undone.append(True)

    monkeypatch.setitem(bench.commands, "probe", probe)
    result = CliRunner().invoke(bench, ["probe"])
    assert undone
    assert result.exit_code == 1
