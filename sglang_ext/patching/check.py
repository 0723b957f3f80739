"""Proves a series: each patch applies, its test fails without it and passes with it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sglang_ext.errors import PatchError
from sglang_ext.patching import git, runner, source
from sglang_ext.patching.series import Patch

__all__ = ["DEFAULT_TIMEOUT_S", "Proof", "check_series"]

# Of one test file. Cost: a test that hangs delays the answer by this much.
DEFAULT_TIMEOUT_S = 600


@dataclass
class Proof:
    """What was found out about one patch; ``ok`` only if all three were seen."""

    patch: str
    subject: str
    applies: bool = False
    fails_without: bool = False
    passes_with: bool = False
    tests: int = 0
    # test -> why it failed
    failed_without: dict[str, str] = field(default_factory=dict)
    failed_with: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the patch does what it says."""
        return self.applies and self.fails_without and self.passes_with and self.error is None

    def as_json(self) -> dict[str, Any]:
        """All fields and ``ok``."""
        return {"ok": self.ok, **asdict(self), "seconds": round(self.seconds, 1)}


def check_series(
    series: list[Patch],
    package: Path,
    *,
    jobs: int = 1,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    done: Callable[[Proof], None] = lambda proof: None,
) -> list[Proof]:
    """Check every patch of a series on copies of a package.

    Args:
        series: the patches in order.
        package: folder of the package, for example ``…/site-packages/sglang``; only read.
        jobs: patches checked at once; each takes one copy (220 MB) and one SGLang process.
        timeout_s: limit for one run of one test file.
        done: called in the order of the series with each finished proof.
    """
    git.require_git()
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        proofs = []
        for proof in pool.map(
            lambda i: _check_patch(series[: i + 1], package, timeout_s), range(len(series))
        ):
            proofs.append(proof)
            done(proof)
    return proofs


def _check_patch(series: list[Patch], package: Path, timeout_s: float) -> Proof:
    """Check the last patch of ``series`` on top of the ones before it."""
    patch = series[-1]
    proof = Proof(patch.name, patch.subject)
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="sglang-ext-patches-"))
    try:
        _prove(proof, series, package, folder, timeout_s)
    except PatchError as error:
        proof.error = str(error).replace(str(folder), "the copy")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        proof.seconds = time.monotonic() - begin
    return proof


def _prove(
    proof: Proof, series: list[Patch], package: Path, folder: Path, timeout_s: float
) -> None:
    patch, tree = series[-1], folder / "tree"
    source.copy_release(package, tree)
    for before in series[:-1]:
        git.apply(tree, before.path)
    git.apply(tree, patch.path, only="test/*")
    without = _run_tests(patch, tree, folder, timeout_s)
    git.apply(tree, patch.path, only="test/*", reverse=True)
    git.apply(tree, patch.path)
    _drop_byte_code(tree, patch)
    proof.applies = True

    proof.tests = len(without)
    proof.failed_without = _failures(without)
    proof.fails_without = bool(proof.failed_without)
    if not proof.fails_without:
        raise PatchError(
            f"{patch.name}: all {len(without)} tests pass without the patch, so they show nothing"
        )
    with_patch = _run_tests(patch, tree, folder, timeout_s)
    proof.tests = len(with_patch)
    proof.failed_with = _failures(with_patch)
    if proof.failed_with:
        name, reason = next(iter(proof.failed_with.items()))
        raise PatchError(f"{patch.name}: {name} fails with the patch: {reason}")
    unseen = [name for name in proof.failed_without if with_patch.get(name) != "passed"]
    if unseen:
        raise PatchError(
            f"{patch.name}: {', '.join(unseen)} failed without the patch and was not run with it"
        )
    proof.passes_with = True


def _drop_byte_code(tree: Path, patch: Patch) -> None:
    """Remove what the run without the patch compiled.

    Python takes byte code for current if time (in seconds) and size of the source are unchanged,
    which a one-character patch can leave as they were.
    """
    for file in map(tree.joinpath, patch.files):
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
            compiled.unlink()


def _failures(outcomes: dict[str, str]) -> dict[str, str]:
    return {
        name: outcome for name, outcome in outcomes.items() if outcome not in ("passed", "skipped")
    }


def _run_tests(patch: Patch, tree: Path, folder: Path, timeout_s: float) -> dict[str, str]:
    """Outcome of each test of a patch, run against the source in ``tree``."""
    outcomes: dict[str, str] = {}
    for test in patch.tests:
        report = _run_file(tree, tree / test, folder / "result.json", timeout_s)
        if report["import_error"]:
            raise PatchError(
                f"{patch.name}: {test} cannot be imported: {report['import_error']}. A failed "
                "import proves nothing; import what the patch adds inside a test"
            )
        package = Path(report["package"] or "nothing")
        if not package.is_relative_to(tree):
            raise PatchError(
                f"{patch.name}: {test} ran against {package} and not against the patched copy; "
                "is there a .pth file or an import hook that puts it in front of PYTHONPATH?"
            )
        outcomes |= {
            f"{Path(test).stem}.{name.removeprefix('patch_test.')}": outcome
            for name, outcome in report["outcomes"].items()
        }
    if not outcomes:
        raise PatchError(f"{patch.name}: {', '.join(patch.tests)} has no unittest test")
    return outcomes


def _run_file(tree: Path, test: Path, result: Path, timeout_s: float) -> dict[str, Any]:
    result.unlink(missing_ok=True)
    with (result.parent / "output.txt").open("w+") as output:
        process = subprocess.Popen(  # noqa: S603 - our own runner
            [sys.executable, "-P", str(Path(runner.__file__).resolve()), str(test), str(result)],
            cwd=result.parent,
            env=_environment(tree),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise PatchError(f"{test.name} did not end within {timeout_s:g} s") from None
        finally:
            _end(process)
        output.seek(0)
        tail = " | ".join(output.read().splitlines()[-3:])
    if not result.is_file():
        raise PatchError(f"{test.name} ended with code {process.returncode} and no result: {tail}")
    report: dict[str, Any] = json.loads(result.read_text())
    return report


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a test and whatever it has started: it has a process group of its own."""
    with contextlib.suppress(ProcessLookupError):  # it has ended, and has left nothing behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(tree: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SGLANG_", "PYTHON"))
    }
    return kept | {
        "PYTHONPATH": str(tree / "python"),
        # No plugin has this name, so none is imported, ours included: a patch is shown on stock
        # SGLang, as upstream's CI would run its test.
        "SGLANG_PLUGINS": "none",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
