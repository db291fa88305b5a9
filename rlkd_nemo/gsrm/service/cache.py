"""Results by content, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict

# What an entry takes beside its bytes: key, dictionary slot, object headers (measured on CPython 3.11).
OVERHEAD_BYTES = 250


class ResultCache:
    """Encoded results under a bound on their total size. Args: max_bytes: overhead included; 0: keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> bytes | None:
        """The entry, now the most recently used; None when there is none."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """Keep `value`, unless it alone is larger than the bound."""
        size = len(value) + OVERHEAD_BYTES
        if size > self.max_bytes:
            return
        before = self._entries.pop(key, None)
        self.bytes += size - (0 if before is None else len(before) + OVERHEAD_BYTES)
        self._entries[key] = value
        while self.bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= len(oldest) + OVERHEAD_BYTES
