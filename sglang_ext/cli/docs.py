"""Writes the pages of ``docs/`` that follow from the code; run by ``make docs``."""

from pathlib import Path

import click

from sglang_ext.config import FLAGS, parse
from sglang_ext.config.cache_stock import CACHE_RESERVED, STEERED_RESERVED
from sglang_ext.config.context_parallel_stock import RESERVED
from sglang_ext.config.stock import stock_settings
from sglang_ext.context_parallel.names import ARCHITECTURES, LATENT_ARCHITECTURES
from sglang_ext.plugin.switches import DISABLE, STRICT
from sglang_ext.plugin.table import GROUPS, HOOKS
from sglang_ext.upstream.releases import RELEASE_OVERRIDE, TESTED_RELEASES, TESTED_TORCH
from sglang_ext.upstream.table import SYMBOLS

__all__ = ["compat_page", "flags_page", "write"]

_GENERATED = "<!-- written by `make docs`; change the code, not this page -->"
_EXAMPLE = {
    "ext_cache": True,
    "ext_l1_tokens": "200k",
    "ext_l2_size": "64GB",
    "ext_l3_dir": "/nvme/kv",
    "ext_l3_size": "500GB",
    "ext_cp_size": "2",
}


def flags_page() -> str:
    """``docs/flags.md``: every flag, the stock flags it sets, and what contradicts it."""
    lines = [
        "# Flags",
        "",
        _GENERATED,
        "",
        "On `python -m sglang.launch_server` and `sglang serve`; all off unless given. Sizes take "
        "a decimal unit (KB, MB, GB, TB: powers of 1000) or a binary one (KiB, MiB, GiB, TiB: "
        "powers of 1024). Tokens take k and M.",
        "",
        "| flag | what it does |",
        "|---|---|",
    ]
    for flag in FLAGS:
        value = f" {flag.metavar}" if flag.metavar else ""
        lines.append(f"| `{flag.name}{value}` | {flag.help} |")
    lines += [
        "",
        "## Stock flags that are set",
        "",
        "For the example `--ext-cache --ext-l1-tokens 200k --ext-l2-size 64GB --ext-l3-dir "
        "/nvme/kv --ext-l3-size 500GB` on one rank, and for `--ext-cp-size 2`. A *default* gives "
        "way to the stock flag when "
        "you give it; with the others, giving another value is an error that names both flags.",
        "",
        "| stock flag | value | because of | |",
        "|---|---|---|---|",
    ]
    for setting in stock_settings(parse(_EXAMPLE), ranks=1):
        kind = "default" if setting.overridable else "fixed"
        lines.append(
            f"| `{setting.stock_flag}` | `{setting.value}` | `{setting.because}` | {kind} |"
        )
    lines += ["", "## Stock flags that contradict `--ext-cache`", ""]
    for field, why in CACHE_RESERVED.items():
        lines.append(f"- `--{field.replace('_', '-')}`: {why}.")
    for field, why in STEERED_RESERVED.items():
        lines.append(f"- `--{field.replace('_', '-')}`, but for `--ext-cache-policy stock`: {why}.")
    lines += [
        "- `--hicache-ratio` together with `--ext-l2-size`: both size the host tier.",
        "- `--dcp-size` above 1 with `--ext-l3-dir`: SGLang takes no storage but its own file and "
        "mooncake there.",
        "- `--disaggregation-decode-enable-offload-kvcache` with `--ext-l3-dir`: it does not say "
        "which pages a page follows.",
        "- `--tokenizer-worker-num` above 1: SGLang loads no plugins in the extra workers.",
        "",
        "With `--ext-tools enforce`, `--tool-call-parser` has to be given, and "
        "`--grammar-backend`, where it is, has to be xgrammar.",
        "",
        "## Stock flags that contradict `--ext-cp-size`",
        "",
    ]
    for field, (_, why) in RESERVED.items():
        lines.append(f"- `--{field.replace('_', '-')}`: {why}.")
    lines += [
        "- `--tp-size` that is not a multiple of it; another one than it for "
        f"{' and '.join(LATENT_ARCHITECTURES)}.",
        "- `--json-model-override-args` that names an architecture other than "
        f"{', '.join(ARCHITECTURES[:-1])} or {ARCHITECTURES[-1]}.",
        "- `--tokenizer-worker-num` above 1: SGLang loads no plugins in the extra workers.",
        "",
        "## Environment",
        "",
        "| variable | meaning |",
        "|---|---|",
        f"| `{STRICT}=0` | go on when a seam did not take effect; said in the log and in "
        "`/server_info` |",
        f"| `{DISABLE}=1` | stock SGLang |",
        f"| `{RELEASE_OVERRIDE}=VERSION` | let a release try that was not tested (`any` "
        "for every one) |",
        "| `SGLANG_CPU_OMP_THREADS_BIND` | SGLang's own: processors of each rank on a CPU, such as "
        "`0-3\\|4-7`; split evenly when not set |",
        "",
        "## Limits",
        "",
        "- With `SGLANG_PLATFORM` naming another platform, `sglang serve --help` does not list "
        "these flags, because SGLang prints it before it loads plugins; "
        "`python -m sglang.launch_server --help` does.",
        "- Sizes are those of one server; its ranks share them evenly. A disk tier has at least "
        "8 MB a rank.",
        "- One server a folder; see [the disk tier](cache.md) for what may share pages, and for "
        "its own limits.",
        "- `--ext-l1-tokens` is per data-parallel replica.",
        "",
        "## Verified on",
        "",
        "SGLang 0.5.23 on the reference device, 1 and 2 ranks.",
        "",
    ]
    return "\n".join(lines)


def compat_page() -> str:
    """``docs/compat.md``: tested releases, and every symbol that is touched."""
    lines = [
        "# Compatibility",
        "",
        _GENERATED,
        "",
        "| | tested |",
        "|---|---|",
        f"| SGLang | {', '.join(TESTED_RELEASES)} |",
        f"| torch | {TESTED_TORCH} |",
        "| Python | 3.11 |",
        "| devices | plain x86-64 CPU (reference device) |",
        "",
        f"Another release is refused at start; `{RELEASE_OVERRIDE}=VERSION` lets it try, "
        "and each seam below is still checked.",
        "",
        "## What is touched",
        "",
        "| symbol | relied on |",
        "|---|---|",
    ]
    for symbol in SYMBOLS:
        lines.append(f"| `{symbol.path}` | {symbol.relied_on} |")
    lines += [
        "",
        "## Hooks",
        "",
        "| target | kind | our function | where |",
        "|---|---|---|---|",
    ]
    for hook in HOOKS:
        where = "reference device" if hook.reference_device else "everywhere"
        if hook.groups:
            where = " or ".join(GROUPS[group].where for group in hook.groups)
        lines.append(f"| `{hook.path}` | {hook.kind} | `{hook.function}` | {where} |")
    lines += [
        "",
        "## Limits",
        "",
        "- Signatures are checked by name of parameter; a change of meaning under the same name "
        "shows only in the integration tests.",
        "",
        "## Verified on",
        "",
        "`tests/compat` and `sglang-ext doctor` on the releases above.",
        "",
    ]
    return "\n".join(lines)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def write(folder: Path) -> None:
    """Write the generated pages into FOLDER."""
    for name, page in (("flags.md", flags_page()), ("compat.md", compat_page())):
        (folder / name).write_text(page, encoding="utf-8")
        click.echo(f"written: {folder / name}")


if __name__ == "__main__":
    write()
