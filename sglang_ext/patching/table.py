"""The table of ``patches/README.md``, made from the headers of the patches."""

from pathlib import Path

from sglang_ext.errors import PatchError
from sglang_ext.patching.series import read_series

__all__ = ["render", "updated"]

_BEGIN = "<!-- table: written by `sglang-ext patches table` -->"
_END = "<!-- end of table -->"


def render(patches: Path) -> str:
    """One Markdown table with a row for each patch of each release."""
    lines = [
        "| patch | what | sent upstream | applied upstream | goes when | updated |",
        "|---|---|---|---|---|---|",
    ]
    for series in sorted(patches.glob("*/series")):
        release = series.parent.name
        for patch in read_series(patches, release):
            headers = patch.headers
            cells = [
                f"[{release}/{patch.name}]({release}/{patch.name})",
                headers["Description"],
                headers["Forwarded"],
                headers["Applied-Upstream"],
                headers["Remove-When"],
                headers["Last-Update"],
            ]
            escaped = (cell.replace("|", "\\|") for cell in cells)
            lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines)


def updated(patches: Path) -> str:
    """The text of ``README.md`` with its table made anew; nothing is written.

    Raises:
        PatchError: if the README has no place for the table.
    """
    readme = patches / "README.md"
    text = readme.read_text() if readme.is_file() else ""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise PatchError(f"{readme}: needs the lines {_BEGIN!r} and {_END!r} around its table")
    return f"{before}{_BEGIN}\n{render(patches)}\n{_END}{after}"
