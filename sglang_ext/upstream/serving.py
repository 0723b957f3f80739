"""What is touched while a server starts: SGLang's plugin loading and its arguments."""

from sglang_ext.upstream.symbols import Symbol

__all__ = ["SYMBOLS"]

SYMBOLS: tuple[Symbol, ...] = (
    # --- plugin loading
    Symbol(
        "sglang.srt.plugins.hook_registry:HookRegistry.register",
        "registers a hook by dotted path",
        ("target", "hook", "hook_type"),
    ),
    Symbol(
        "sglang.srt.plugins.hook_registry:HookRegistry.apply_hooks",
        "the last thing that load_plugins() calls, outside of its try blocks: wrapped so that "
        "hooks are verified once they are applied",
    ),
    Symbol("sglang.srt.plugins.hook_registry:HookType", "has BEFORE, AFTER, AROUND and REPLACE"),
    # --- arguments
    Symbol(
        "sglang.srt.server_args:ServerArgs.add_cli_args",
        "static; adds the stock flags to an argparse parser that parses argv next",
        ("parser",),
    ),
    Symbol(
        "sglang.srt.server_args:ServerArgs.from_cli_args",
        "class method; builds the record from the parsed namespace; an attribute set on the "
        "record whose name begins with an underscore survives pickling to child processes",
        ("args",),
    ),
    Symbol(
        "sglang.srt.utils.common:build_server_info",
        "returns the dict that /server_info shows",
        ("server_args", "scheduler_info"),
    ),
    Symbol(
        "sglang.cli.serve:_print_llm_help",
        "prints the flags for sglang serve --help; plugins are not loaded by then",
        ("_request",),
    ),
    Symbol(
        "sglang.srt.arg_groups.resolution_hooks:register_resolution_hook",
        "registers fn(server_args, previous) for a named step of argument resolution",
        ("name",),
    ),
    Symbol(
        "sglang.srt.arg_groups.overrides:declare_resolution",
        "declares a resolved value without touching the user's input",
        ("server_args", "source"),
    ),
)
