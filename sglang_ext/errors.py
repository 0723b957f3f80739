"""Every error that sglang-ext raises on purpose.

::

    SglangExtError
    ├── ConfigError           a flag, size or path that cannot be used (exit code 2)
    │   └── FlagConflictError   an --ext-* flag and a stock flag that contradict each other
    ├── CompatibilityError    SGLang, torch or a seam is not what this release was tested with
    │   └── HookError           a hook or registry entry that did not take effect
    ├── DeviceError           the reference device was asked for something it does not do
    ├── ModelError            a model could not be made or is not what was expected
    ├── ServerError           a server process did not start, died or did not answer
    ├── StoreError            a page store that cannot be opened, made durable or trusted
    │   ├── StoreFolderError    its folder or one of its files is not ours alone (exit code 2)
    │   ├── StoreFormatError    it was written by a newer release (exit code 2)
    │   └── StoreInUseError     another writer holds it (exit code 2)
    ├── ToolsError            tool calls cannot be held to what was asked for
    │   ├── ToolSchemaError     a schema, or a part of it, that cannot be enforced or checked
    │   └── ToolWorkError       a request's tools take more work than it may cost
    ├── PatchError            a patch does not apply or does not do what its test says
    ├── StateError            what a policy has learned cannot be taken back
    │   ├── DamagedStateError   it is not a state, or some of it is wrong
    │   ├── StateFormError      it was written in another form
    │   └── StateBoundsError    it is of a policy with other bounds
    ├── AdviceError           a client's advice about a session cannot be taken
    ├── MirrorError           what is known of SGLang's radix tree contradicts itself
    ├── TraceError            a request trace or a server's log cannot be replayed
    ├── BenchError            a benchmark could not measure what it was asked to
    └── DemoError             the demonstration could not run to its end

A message says what went wrong, where, the value that was found, and what to do about it.
The command line prints the message alone and exits with ``exit_code``.
"""

__all__ = [
    "AdviceError",
    "BenchError",
    "CompatibilityError",
    "ConfigError",
    "DamagedStateError",
    "DemoError",
    "DeviceError",
    "FlagConflictError",
    "HookError",
    "MirrorError",
    "ModelError",
    "PatchError",
    "ServerError",
    "SglangExtError",
    "StateBoundsError",
    "StateError",
    "StateFormError",
    "StoreError",
    "StoreFolderError",
    "StoreFormatError",
    "StoreInUseError",
    "ToolSchemaError",
    "ToolWorkError",
    "ToolsError",
    "TraceError",
]


class SglangExtError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what a command exits with.

    Args:
        what: what went wrong, where, and the value that was found.
        fix: what to do about it, where `doctor` shows the two apart; the message is both.
    """

    exit_code = 1

    def __init__(self, what: str = "", *, fix: str = "") -> None:
        super().__init__(f"{what}; {fix}" if fix else what)
        self.what = what
        self.fix = fix


class ConfigError(SglangExtError):
    """A flag, size or path that cannot be used as given."""

    exit_code = 2


class FlagConflictError(ConfigError):
    """An ``--ext-*`` flag and a stock flag given by the user contradict each other."""


class CompatibilityError(SglangExtError):
    """The installed SGLang, torch or one of their seams is not what was tested."""


class HookError(CompatibilityError):
    """A hook or registry entry did not take effect after SGLang's loader had run."""


class DeviceError(SglangExtError):
    """The reference device was asked for something it does not do."""


class ModelError(SglangExtError):
    """A model could not be made, or its files are not what was expected."""


class ServerError(SglangExtError):
    """A server process did not start, died, or did not answer in time."""


class StoreError(SglangExtError):
    """A page store cannot be opened, cannot be made durable, or broke one of its invariants."""


class StoreFolderError(StoreError):
    """The store's folder, or a file in it, is a link, somebody else's, or open to others."""

    exit_code = 2


class StoreFormatError(StoreError):
    """The store was written in a format that this release does not know."""

    exit_code = 2


class StoreInUseError(StoreError):
    """Another process, or another object of this one, writes to the store."""

    exit_code = 2


class ToolsError(SglangExtError):
    """A request's tools cannot be held to what it asks for; the client is told why."""


class ToolSchemaError(ToolsError):
    """A tool's schema, or a part of it, can neither be enforced nor checked."""


class ToolWorkError(ToolsError):
    """A request's tools take more work than it may cost; no part of them is left out for that."""


class PatchError(SglangExtError):
    """A patch does not apply, or its test does not show what it claims."""


class BenchError(SglangExtError):
    """A benchmark could not measure what it was asked to."""


class DemoError(SglangExtError):
    """The demonstration could not run to its end."""


class TraceError(SglangExtError):
    """A request trace, or a server's log to make one of, cannot be used."""

    exit_code = 2


class AdviceError(SglangExtError):
    """A client's advice about a session is not one that can be taken."""


class MirrorError(SglangExtError):
    """What is known of SGLang's radix tree contradicts itself, or what the tree says."""


class StateError(SglangExtError):
    """What a policy has learned cannot be taken back; it starts without."""


class DamagedStateError(StateError):
    """It is not a state, or some of it is missing or wrong."""


class StateFormError(StateError):
    """It was written in another form, by another release."""


class StateBoundsError(StateError):
    """It is of a policy with other bounds than this one."""
