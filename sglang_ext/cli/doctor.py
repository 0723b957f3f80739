"""``sglang-ext doctor``: what is installed, what is in effect, what moved, and how to mend it."""

import contextlib
import io
import logging
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sglang_ext import __version__
from sglang_ext.cli.options import json_option, open_json, write_json
from sglang_ext.config.cache_machine import prepare_l3_dir
from sglang_ext.config.sizes import format_size
from sglang_ext.errors import CompatibilityError, ConfigError
from sglang_ext.plugin.opening import open_group
from sglang_ext.plugin.reference import reference_device
from sglang_ext.plugin.switches import DISABLE, STRICT, disabled
from sglang_ext.plugin.table import GROUPS
from sglang_ext.plugin.verifying import seam_statuses
from sglang_ext.upstream.releases import (
    RELEASE_OVERRIDE,
    TESTED_RELEASES,
    check_release,
    check_torch,
    installed,
)
from sglang_ext.upstream.symbols import check_symbol
from sglang_ext.upstream.table import SYMBOLS

__all__ = ["Finding", "diagnose", "doctor"]

OK, NOTE, FAILED = "ok", "note", "failed"
_STYLES = {OK: "green", NOTE: "yellow", FAILED: "bold red"}

# A server holds a socket a request and a file a page in flight; SGLang raises its own soft limit
# to 65535 where the hard limit allows.
_OPEN_FILES = 65_535
_FREE_DISK_BYTES = 10 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``note`` works and could be better; ``failed`` has to be mended."""

    area: str
    name: str
    state: str
    detail: str
    fix: str = ""


def diagnose(l3_dir: str | None = None) -> list[Finding]:
    """Look at versions, device, plugin, seams, hooks, disk and limits, in that order.

    Imports SGLang (some seconds) unless it is missing or of another release.
    """
    findings = list(_versions())
    usable = all(finding.state != FAILED for finding in findings)
    findings += _selection()
    if usable:
        findings += _seams()
        findings += _hooks()
        findings += _device()
    findings += _l3_dir(l3_dir) if l3_dir else _disk(Path.home() / ".cache" / "sglang-ext")
    findings += _limits()
    return findings


def _versions() -> Iterator[Finding]:
    yield Finding("version", "sglang-ext", OK, __version__)
    yield Finding("version", "python", OK, platform.python_version())
    try:
        release = check_release()
    except CompatibilityError as error:
        yield Finding("version", "sglang", FAILED, error.what, error.fix)
    else:
        tested = release in TESTED_RELEASES
        detail = release if tested else f"{release}, let through by {RELEASE_OVERRIDE}"
        yield Finding("version", "sglang", OK if tested else NOTE, detail)
    try:
        check_torch()
    except CompatibilityError as error:
        yield Finding("version", "torch", FAILED, error.what, error.fix)
    else:
        yield Finding("version", "torch", OK, str(installed("torch")))
    for package in ("torchvision", "transformers", "xgrammar"):
        version = installed(package)
        if version is None:
            fix = "run: make setup, or install what requirements/server.txt names"
            yield Finding("version", package, FAILED, "not installed", fix)
        else:
            yield Finding("version", package, OK, version)


def _selection() -> Iterator[Finding]:
    """Whether SGLang's loader will find our plugin, and what the environment says about it."""
    found = {ep.name for ep in entry_points(group="sglang.srt.plugins")}
    if "sglang_ext" not in found:
        fix = "install sglang-ext into this environment: pip install --no-deps -e ."
        yield Finding("plugin", "entry point", FAILED, "SGLang's loader does not find us", fix)
        return
    allowed = os.environ.get("SGLANG_PLUGINS", "")
    names = {name.strip() for name in allowed.split(",") if name.strip()}
    selected = os.environ.get("SGLANG_PLATFORM", "")
    if disabled():
        fix = f"unset {DISABLE}"
        yield Finding("plugin", "entry point", NOTE, f"{DISABLE} switches us off", fix)
    elif names and "sglang_ext" not in names:
        fix = "add sglang_ext (and sglang_ext_cpu without a GPU) to SGLANG_PLUGINS"
        yield Finding("plugin", "entry point", FAILED, f"SGLANG_PLUGINS={allowed} hides us", fix)
    elif selected and selected != "sglang_ext_cpu":
        # SGLang skips general plugins of every distribution that brings another platform.
        fix = "unset SGLANG_PLATFORM where only one platform plugin finds its device"
        detail = f"SGLANG_PLATFORM={selected} makes SGLang skip us"
        yield Finding("plugin", "entry point", FAILED, detail, fix)
    else:
        yield Finding("plugin", "entry point", OK, "found")


def _seams() -> Iterator[Finding]:
    moved = 0
    for symbol in SYMBOLS:
        try:
            check_symbol(symbol)
        except CompatibilityError as error:
            moved += 1
            yield Finding("seam", symbol.path, FAILED, error.what, error.fix)
    if not moved:
        yield Finding("seam", "symbols of SGLang", OK, f"all {len(SYMBOLS)} in place")


def _hooks() -> Iterator[Finding]:
    if disabled():
        return
    try:
        with _lenient():
            from sglang.srt.plugins import load_plugins

            load_plugins()
            for group in GROUPS:
                open_group(group)
    except Exception as error:  # a broken install is a finding
        fix = "install what requirements/server.txt names, see above"
        yield Finding("hook", "all", FAILED, f"{type(error).__name__}: {error}", fix)
        return
    statuses = seam_statuses()
    if not statuses:
        fix = "see the plugin's finding above"
        yield Finding("hook", "all", FAILED, "SGLang's loader did not run our plugin", fix)
    for status in statuses:
        if status.state == "failed":
            fix = f"run: pip install --no-deps sglang=={TESTED_RELEASES[-1]}"
            yield Finding("hook", status.name, FAILED, status.detail, fix)
        else:
            detail = f"{status.state}: {status.detail}" if status.detail else status.state
            yield Finding("hook", status.name, OK, detail)


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """A failed hook is a finding here, and not the end of the process."""
    before = os.environ.get(STRICT)
    os.environ[STRICT] = "0"
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop(STRICT)
        if before is not None:
            os.environ[STRICT] = before


def _device() -> Iterator[Finding]:
    try:
        from sglang.srt.platforms import current_platform
    except Exception as error:  # several platforms, or a broken install: both are findings
        fix = "set SGLANG_PLATFORM where several platforms are found; else run: make setup"
        yield Finding("device", "platform", FAILED, f"{type(error).__name__}: {error}", fix)
        return
    ours = reference_device()
    kind = "reference device" if ours else "served by SGLang itself"
    cpus = len(os.sched_getaffinity(0))
    detail = f"{current_platform.device_name}: {kind}, {cpus} processors, {platform.machine()}"
    if not ours and current_platform.device_name == "unknown":
        fix = "unset SGLANG_EXT_DISABLE and SGLANG_USE_CPU_ENGINE to use the reference device"
        yield Finding("device", "platform", FAILED, "SGLang knows no device here", fix)
    else:
        yield Finding("device", "platform", OK, detail)


def _l3_dir(path: str) -> Iterator[Finding]:
    """What a server would refuse about a folder, or else its disk."""
    try:
        if os.path.lexists(path):
            prepare_l3_dir(path)
    except ConfigError as error:
        yield Finding("disk", path, FAILED, error.what, error.fix)
    else:
        yield from _disk(Path(path))


def _disk(folder: Path) -> Iterator[Finding]:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:  # permissions do not tell of a read-only disk, or of /proc
        Path(tempfile.mkdtemp(prefix=".sglang-ext-", dir=existing)).rmdir()
    except OSError as error:
        detail = f"nothing can be made in {existing}: {error.strerror}"
        fix = "give a folder on a disk that this user may write"
        yield Finding("disk", str(folder), FAILED, detail, fix)
        return
    free_bytes = shutil.disk_usage(existing).free
    detail = f"{format_size(free_bytes)} free"
    if free_bytes < _FREE_DISK_BYTES:
        fix = "free some space, or put --ext-l3-dir on another disk"
        yield Finding("disk", str(folder), NOTE, detail, fix)
    else:
        yield Finding("disk", str(folder), OK, detail)


def _limits() -> Iterator[Finding]:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        fix = (
            f"as root, raise nofile to {_OPEN_FILES} in /etc/security/limits.conf, then log in anew"
        )
        yield Finding("limit", "open files", NOTE, f"at most {hard}", fix)
    else:
        yield Finding("limit", "open files", OK, f"at most {hard}")


@click.command()
@json_option("the findings")
@click.option("--l3-dir", metavar="DIR", help="The folder of --ext-l3-dir, to look at its disk.")
@click.option("-v", "--verbose", is_flag=True, help="Show what is good, too.")
def doctor(json_file: Path | None, l3_dir: str | None, verbose: bool) -> None:
    """Check versions, hooks, seams, disk and limits; a fix for each finding.

    Exits 0 when nothing failed, 1 when something has to be mended.
    """
    open_json(json_file)
    with contextlib.redirect_stderr(io.StringIO()):  # warnings of SGLang's imports
        findings = diagnose(l3_dir)
    failed = sum(finding.state == FAILED for finding in findings)
    report = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
    write_json(json_file, report)
    _print(findings, verbose=verbose)
    raise SystemExit(1 if failed else 0)


def _print(findings: list[Finding], *, verbose: bool) -> None:
    shown = [f for f in findings if verbose or f.state != OK or f.area in ("version", "device")]
    if sys.stdout.isatty():
        _print_table(shown)
    else:  # one whole line each, for grep
        for finding in shown:
            fix = f" -- {finding.fix}" if finding.fix else ""
            click.echo(f"{finding.state}: {finding.area}: {finding.name}: {finding.detail}{fix}")
    counts = {state: sum(f.state == state for f in findings) for state in (OK, NOTE, FAILED)}
    notes = "1 note" if counts[NOTE] == 1 else f"{counts[NOTE]} notes"
    click.echo(f"{counts[OK]} good, {notes}, {counts[FAILED]} failed")


def _print_table(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "how to mend it"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.state]
        state = f"[{style}]{finding.state}[/]"
        what = f"{finding.area}: {finding.name}"
        table.add_row(state, escape(what), escape(finding.detail), escape(finding.fix))
    Console().print(table)
