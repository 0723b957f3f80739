"""The source of the installed SGLang, and copies of it in the layout of the upstream repository."""

import base64
import hashlib
import importlib.metadata
import shutil
from pathlib import Path

from sglang_ext.errors import CompatibilityError, ConfigError
from sglang_ext.patching.series import Patch

__all__ = ["check_pristine", "copy_release", "installed_release"]


def installed_release() -> tuple[str, Path]:
    """Release and package folder of the installed SGLang; SGLang is not imported.

    Raises:
        CompatibilityError: if it is not installed, or not from a wheel.
    """
    try:
        distribution = importlib.metadata.distribution("sglang")
    except importlib.metadata.PackageNotFoundError:
        raise CompatibilityError(
            "sglang is not installed in this Python, and the patches are checked against its "
            "source: install the release with `pip install --no-deps sglang==RELEASE`"
        ) from None
    package = Path(str(distribution.locate_file("sglang")))
    if not (package / "__init__.py").is_file():
        raise CompatibilityError(
            f"the installed sglang {distribution.version} has no folder {package}: the patches "
            "are checked against a wheel's source, not against an editable install"
        )
    return distribution.version, package


def check_pristine(patches: list[Patch]) -> None:
    """Make sure that the installed files which the patches touch are those of the wheel.

    Raises:
        CompatibilityError: if one was edited after it was installed.
    """
    touched = {file.removeprefix("python/") for patch in patches for file in patch.files}
    for entry in importlib.metadata.files("sglang") or []:
        if str(entry) not in touched or entry.hash is None:
            continue
        digest = hashlib.new(entry.hash.mode, Path(str(entry.locate())).read_bytes()).digest()
        found = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if found != entry.hash.value:
            raise CompatibilityError(
                f"{entry.locate()} is not the file of the wheel ({entry.hash.mode} {found}, "
                f"expected {entry.hash.value}): reinstall sglang, so that the patches are checked "
                "against the release"
            )


def copy_release(package: Path, tree: Path) -> None:
    """Copy a package folder to ``tree/python/sglang``, where the upstream repository has it.

    Everything is a real copy, no links: whatever a patch or its test does to the copy, the
    package stays as it is. Byte code comes along, because compiling it again costs more than
    copying it. 0.5.23 takes 220 MB and 2 seconds.
    """
    if not (package / "__init__.py").is_file():
        raise ConfigError(f"{package} is not a Python package: it has no __init__.py")
    shutil.copytree(package, tree / "python" / "sglang", symlinks=False)
