"""Which model ``--ext-cp-size`` is asked to split, as far as it can be known before loading it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_ext.errors import ConfigError

__all__ = ["check_model"]

_OVERRIDES = "--json-model-override-args"


def check_model(model_path: str, overrides: str, known: Sequence[str]) -> str | None:
    """Refuse a model that no split batch was computed with.

    Args:
        model_path: a folder; a name of a hub is looked at once the model is here.
        overrides: JSON that changes the model's configuration, as SGLang's flag takes it.
        known: architectures that split batches were computed with.

    Returns:
        Its architecture; None where the model is not here yet.

    Raises:
        ConfigError: names the model, or what cannot be read.
    """
    try:
        changed = json.loads(overrides)
    except ValueError as error:
        raise ConfigError(f"{_OVERRIDES} cannot be read: {error}") from None
    if isinstance(changed, dict) and "architectures" in changed:
        return _check(changed, _OVERRIDES, known)
    file = Path(model_path).expanduser() / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model-path: {file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--model-path: {file} holds no JSON object; give a model's folder")
    return _check(config, str(file), known)


def _check(config: dict[str, Any], where: str, known: Sequence[str]) -> str:
    names = config.get("architectures") or [""]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ConfigError(
            f"--ext-cp-size: architectures in {where} is {json.dumps(names)}; expected a list of "
            "names"
        )
    if names[0] not in known:
        raise ConfigError(
            f"--ext-cp-size: {names[0] or 'a model without a name'} ({where}) is not among the "
            f"models that it was tried with, {', '.join(known)}; leave it out"
        )
    return names[0]
