"""What `counted_collectives` wrote down."""

import os
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "counted_collectives"


@dataclass(frozen=True)
class Call:
    """One collective of one rank."""

    process: int
    name: str
    ranks: int
    dtype: str
    rows: int
    sent_bytes: int

    @property
    def of_attention(self) -> bool:
        """Whether it is a layer's AllGather of packed rows: nothing else sends bytes."""
        return self.name == "all_gather_into_tensor" and self.dtype == "torch.uint8"


class Collectives:
    """The collectives of a server, one test at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen = 0

    @property
    def environment(self) -> dict[str, str]:
        """What the server is started with."""
        path = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))
        return {"COUNT_COLLECTIVES": str(self.file), "PYTHONPATH": path}

    def since_last(self) -> list[Call]:
        """Those of several ranks that were started since the last call."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        new, self._seen = lines[self._seen :], len(lines)
        calls = []
        for line in new:
            process, name, ranks, dtype, rows, size = line.split()
            calls.append(Call(int(process), name, int(ranks), dtype, int(rows), int(size)))
        return [call for call in calls if call.ranks > 1]
