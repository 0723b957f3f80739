"""Runs one unittest file and writes what became of each test as JSON.

Started as a script in a child process whose ``PYTHONPATH`` begins with a copy of SGLang's
source; it imports nothing of sglang_ext, so that a patch is shown without it.

    python -P runner.py TEST_FILE RESULT_FILE
"""

import importlib.util
import json
import sys
import traceback
import unittest
from pathlib import Path
from typing import Any

__all__ = ["run"]


class _Outcomes(unittest.TestResult):
    """Outcome of each test: "passed", "skipped", or the error that made it fail."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}

    def _fail(self, test: unittest.TestCase, error: BaseException | None) -> None:
        self.outcomes[test.id()] = _root_cause(error)

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.outcomes[test.id()] = "passed"

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._fail(test, err[1])

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._fail(test, err[1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._fail(test, err[1])

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        self.outcomes[test.id()] = "passed, but is marked as an expected failure"

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcomes[test.id()] = "skipped"


def _root_cause(error: BaseException | None) -> str:
    # SGLang's CustomTestCase wraps an error in "retry() exceed maximum number of retries".
    while error is not None and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def run(test_file: Path) -> dict[str, Any]:
    """Import and run one file: ``{"import_error", "package", "outcomes"}``."""
    spec = importlib.util.spec_from_file_location("patch_test", test_file)
    if spec is None or spec.loader is None:
        return {"import_error": f"cannot load {test_file}", "package": None, "outcomes": {}}
    module = importlib.util.module_from_spec(spec)
    sys.modules["patch_test"] = module
    import_error = None
    outcomes = _Outcomes()
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        import_error = f"{_root_cause(error)} ({where.filename}:{where.lineno})"
    else:
        unittest.defaultTestLoader.loadTestsFromModule(module).run(outcomes)
    # Which SGLang was tested: a .pth file or an import hook could have put another one in front.
    package = getattr(sys.modules.get("sglang"), "__file__", None)
    return {"import_error": import_error, "package": package, "outcomes": outcomes.outcomes}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]))))
