"""``git apply`` on a folder that need not be a repository.

Git reads its configuration and looks for a repository in the parents of the folder; both would
change what ``git apply`` does (in a sub-folder of a repository it silently skips files), so it is
run without either.
"""

import os
import shutil
import subprocess
from pathlib import Path

from sglang_ext.errors import ConfigError, PatchError

__all__ = ["apply", "require_git"]


def require_git() -> str:
    """Path of the git program.

    Raises:
        ConfigError: if there is none.
    """
    git = shutil.which("git")
    if git is None:
        raise ConfigError(
            "git is not on the PATH, and patches are applied with `git apply`: install git "
            "(`apt-get install git`, `dnf install git`)"
        )
    return git


def apply(tree: Path, patch: Path, *, only: str | None = None, reverse: bool = False) -> None:
    """Apply one patch to a source tree, all of it or nothing.

    Args:
        tree: folder to which the paths in the patch are relative.
        patch: the patch file.
        only: a pattern, such as ``test/*``; other files of the patch are left out.
        reverse: take the patch out.

    Raises:
        ConfigError: if there is no git.
        PatchError: if the patch does not apply; the message is git's.
    """
    command = [require_git(), "apply", "--whitespace=nowarn"]
    command += [f"--include={only}"] if only else []
    command += ["--reverse"] if reverse else []
    done = subprocess.run(  # noqa: S603 - git and files of ours
        [*command, str(patch.resolve())],
        cwd=tree,
        env=_environment(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = "; ".join(line.removeprefix("error: ") for line in done.stderr.splitlines())
        raise PatchError(f"{patch.name} does not apply to {tree}: {reason}")


def _environment(tree: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C",
    }
