"""What the steered tree is asked to be, as plain values."""

from dataclasses import dataclass, field

__all__ = ["TreeSettings"]


@dataclass(frozen=True)
class TreeSettings:
    """Settings of one server's tree.

    Args:
        policy: ``ext`` or ``lru``.
        secret: keys marks of prompts; equal on all ranks.
        block_tokens: tokens a mark stands for, at least; whole pages.
        pin_share: part of device memory that one tenant's pins may hold.
        state_file: where what was learned survives a restart; empty: nowhere.
        state_bytes: bound of that file; a longer state is not kept.
        record_file: where requests are logged; empty: nowhere.
        record_bytes: bound of that file.
        tool_call_parser: SGLang's name of it.
        writes: whether this rank writes the log for all.
    """

    policy: str = "ext"
    secret: bytes = field(default=b"", repr=False)
    block_tokens: int = 16
    pin_share: float = 0.05
    state_file: str = ""
    state_bytes: int = 8 << 20
    record_file: str = ""
    record_bytes: int = 10**9
    tool_call_parser: str = ""
    writes: bool = True
