"""Entry point of ``sglang-ext``; sub-commands are imported only when they are asked for."""

import importlib
import signal
import sys

import click

from sglang_ext import __version__
from sglang_ext.errors import SglangExtError

__all__ = ["cli", "main"]

# name -> (module, attribute, one line of help). Modules are loaded on use, so that
# `sglang-ext --help` needs neither torch nor SGLang.
_COMMANDS = {
    "bench": ("sglang_ext.cli.bench", "bench", "Measure ours, the rivals and the limit."),
    "cache": ("sglang_ext.cli.cache", "cache", "Look at the disk tier, check it, give space back."),
    "demo": ("sglang_ext.cli.demo", "demo", "Agents on a three-tier cache, killed and replayed."),
    "doctor": ("sglang_ext.cli.doctor", "doctor", "Check versions, hooks, seams, disk and limits."),
    "model": ("sglang_ext.cli.model", "model", "Make the models that are used here."),
    "patches": ("sglang_ext.cli.patches", "patches", "Prove the patches staged for upstream."),
    "replay": (
        "sglang_ext.cli.replay",
        "replay_command",
        "Hit rates of the cache policy on a trace.",
    ),
}


class _LazyGroup(click.Group):
    """A click group that imports a sub-command's module when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all sub-commands."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command called ``cmd_name``, or None."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - our own table
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List sub-commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row[2]) for name, row in sorted(_COMMANDS.items())])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tools around a stock SGLang server with sglang-ext. Exit codes: 0 good, 1 a finding, "
    "2 wrong use.",
)
@click.version_option(__version__, prog_name="sglang-ext")
def cli() -> None:
    """Root of the command line."""


def main() -> None:
    """Run the command line; an error of ours is one line on stderr, never a traceback."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.Abort:
        sys.exit(128 + signal.SIGINT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SglangExtError as error:
        click.echo(f"sglang-ext: error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"sglang-ext: error: {where}{error.strerror or error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
