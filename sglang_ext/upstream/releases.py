"""The releases of SGLang and torch that were tested, and whether the installed ones are."""

import importlib.metadata
import os

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from sglang_ext.errors import CompatibilityError

__all__ = [
    "INSTALL_TESTED",
    "RELEASE_OVERRIDE",
    "TESTED_RELEASES",
    "TESTED_TORCH",
    "check_release",
    "check_torch",
    "installed",
]

TESTED_RELEASES = ("0.5.23",)
# The torch that the tested SGLang names in its metadata, and torchvision's match.
TESTED_TORCH = "2.14.1"
RELEASE_OVERRIDE = "SGLANG_EXT_ALLOW_RELEASE"
_INSTALL = f"pip install --no-deps sglang=={TESTED_RELEASES[-1]}"
INSTALL_TESTED = f"sglang-ext was tested with SGLang {', '.join(TESTED_RELEASES)}; run: {_INSTALL}"


def installed(package: str) -> str | None:
    """The installed version of ``package``, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_release() -> str:
    """The installed SGLang release, if it is one that was tested.

    ``SGLANG_EXT_ALLOW_RELEASE=<version>`` (or ``any``) lets another one pass; its seams are
    still checked one by one.

    Raises:
        CompatibilityError: SGLang is missing or of another release.
    """
    release = installed("sglang")
    tested = ", ".join(TESTED_RELEASES)
    if release is None:
        raise CompatibilityError("SGLang is not installed", fix=f"run: {_INSTALL}")
    if release in TESTED_RELEASES or os.environ.get(RELEASE_OVERRIDE) in (release, "any"):
        return release
    raise CompatibilityError(
        f"SGLang {release} is not a release that sglang-ext was tested with ({tested})",
        fix=f"run: {_INSTALL}, or set {RELEASE_OVERRIDE}={release} to try it",
    )


def check_torch() -> None:
    """Check that torchvision, which SGLang imports, is the match of the installed torch.

    Raises:
        CompatibilityError: it is not, and importing it would fail.
    """
    torch, torchvision = installed("torch"), installed("torchvision")
    if torch is None or torchvision is None:
        missing = "torch" if torch is None else "torchvision"
        raise CompatibilityError(
            f"{missing} is not installed",
            fix=f"run: pip install torch=={TESTED_TORCH} with its matching torchvision",
        )
    try:
        public = Version(torch).public
    except InvalidVersion:  # a vendor's own scheme: the vendor knows its match
        return
    for line in importlib.metadata.requires("torchvision") or ():
        requirement = Requirement(line)
        if requirement.name == "torch" and not requirement.specifier.contains(
            public, prereleases=True
        ):
            raise CompatibilityError(
                f"torch {torch} is not the match of torchvision {torchvision}, which needs "
                f"{requirement}",
                fix=f"run: pip install torch=={TESTED_TORCH} with its matching torchvision, or the "
                "pair that your device's vendor built",
            )
