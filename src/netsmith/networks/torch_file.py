"""PyTorch's own checkpoints looked through before they are loaded: no code, nothing compressed, no lying sizes.

`torch.load(weights_only=True)` runs no code, but it allocates what a file claims before it sees that the file lacks it,
and expands compressed archives. Here the same instructions are followed with nothing built: what is called, and how
large it would be, is known before PyTorch reads the file.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from netsmith import limits

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""What every checkpoint of PyTorch before 1.6 begins with."""

_PICKLE_BYTES = 256 * limits.MIB
_CALLED = frozenset([
    "collections.OrderedDict", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.nn.parameter.Parameter",
    "torch.Size", "torch.device", "argparse.Namespace", "__builtin__.set", "builtins.set", "_codecs.encode",
])  # fmt: skip
_STORAGES = {
    "DoubleStorage": 8, "LongStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "FloatStorage": 4,
    "IntStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "ShortStorage": 2,
}  # fmt: skip


class UnsafeError(ValueError):
    """A file holds code, or objects of classes; the text names one."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True, eq=False)
class _Made:
    """What an instruction would have built: a storage has its number of values, a tensor likewise."""

    kind: str
    values: int = 0


def look_through(path: Path) -> None:
    """Raises UnsafeError, or ValueError for what is damaged or would take more memory than the file accounts for."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
        if start[:4] == b"PK\x03\x04":
            records = list(_records(file, size))
            names = [name.lower() for name, _, _ in records]
            if len(set(names)) < len(names):
                raise ValueError("its archive has two entries of one name")
            pickles = [entry for entry in records if entry[0].lower().endswith("data.pkl")]
            if not pickles:
                raise ValueError("its archive has no data.pkl")
            for _, offset, length in pickles:
                file.seek(offset)
                if length > _PICKLE_BYTES:
                    raise ValueError(f"its data.pkl has {length} bytes, expected at most {_PICKLE_BYTES}")
                _follow(io.BytesIO(file.read(length)), size)
            return
        if start[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise ValueError("it is neither a zip archive nor a pickle")
        file.seek(0)
        # magic number, version, facts of the system, the object; then the keys of the storages, and those
        for _ in range(5 if start == _LEGACY else 1):
            _follow(file, size)
        if start != _LEGACY:
            raise ValueError("it is a pickle, but none that torch.save wrote")


def _records(file: io.BufferedIOBase, size: int) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and length of every entry of a zip archive as torch.save writes it: nothing is compressed.

    Its own reader, strict, so that no archive looks one way here and another way to PyTorch's.
    """
    file.seek(max(0, size - 22))
    end = file.read(22)
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ValueError("its archive does not end as one of torch.save")
    count, length, at = struct.unpack("<10xHII2x", end)
    directory_end = size - 22
    if count == 0xFFFF or 0xFFFFFFFF in (length, at):
        file.seek(max(0, size - 22 - 20 - 56))
        wide = file.read(56)
        if wide[:4] != b"PK\x06\x06":
            raise ValueError("its archive does not end as one of torch.save")
        count, length, at = struct.unpack("<32xQQQ", wide)
        directory_end -= 76
    elif size >= 42:
        file.seek(size - 42)
        if file.read(4) == b"PK\x06\x07":  # a 64-bit end as well, which readers may prefer
            file.seek(max(0, size - 98))
            if struct.unpack("<32xQQQ", file.read(56)) != (count, length, at):
                raise ValueError("its archive has two ends that differ")
            directory_end -= 76
    if at + length != directory_end or count > limits.TENSORS + 100:
        raise ValueError("the directory of its archive is not where its end says")
    file.seek(at)
    yield from _entries(io.BytesIO(file.read(length)), count, file, at)


def _entries(
    directory: io.BufferedIOBase, count: int, file: io.BufferedIOBase, limit: int
) -> Iterator[tuple[str, int, int]]:
    total = 0
    for _ in range(count):
        head = directory.read(46)
        if len(head) < 46 or head[:4] != b"PK\x01\x02":
            raise ValueError("the directory of its archive is damaged")
        flags, method = struct.unpack("<8xHH34x", head)
        packed, length, named, extra, comment = struct.unpack("<20xIIHHH12x", head)
        at = struct.unpack("<42xI", head)[0]
        name = directory.read(named).decode("utf-8", "replace")
        packed, length, at = _wide(directory.read(extra), packed, length, at)
        directory.read(comment)
        if method != 0 or packed != length or flags & 1:
            raise ValueError(f"{name[:80]!r} in its archive is compressed or encrypted; torch.save compresses nothing")
        total += length
        file.seek(at)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04" or total > limit:
            raise ValueError(f"the entries of its archive overlap, or are not there ({name[:80]!r})")
        at += 30 + sum(struct.unpack("<26xHH", local))
        if at + length > limit:
            raise ValueError(f"{name[:80]!r} goes past the end of its archive")
        yield name, at, length


def _wide(extra: bytes, packed: int, length: int, at: int) -> tuple[int, int, int]:
    """Sizes and place of an entry, from the field for 64 bits where the short ones are full."""
    place = 0
    while place + 4 <= len(extra):
        kind, n = struct.unpack("<HH", extra[place : place + 4])
        if kind == 1:
            values = list(struct.unpack(f"<{n // 8}Q", extra[place + 4 : place + 4 + n // 8 * 8]))
            full = [v == 0xFFFFFFFF for v in (length, packed, at)]
            length, packed, at = (
                values.pop(0) if f and values else v for f, v in zip(full, (length, packed, at), strict=True)
            )
            break
        place += 4 + n
    return packed, length, at


def _follow(file: io.BufferedIOBase, size: int) -> None:
    """Follow one pickle to its end, building nothing; `size` is that of the file, which its storages must fit in."""
    try:
        _Follower(size).run(file)
    except (IndexError, KeyError, struct.error, OverflowError, EOFError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from error


class _Reader:
    """A file of which no more is asked than it has: what is read is allocated first."""

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self.file, self.size, self.tell = file, size, file.tell

    def read(self, count: int) -> bytes:
        """The next bytes. Raises ValueError for more than the whole file has."""
        if not 0 <= count <= self.size:
            raise ValueError(f"its pickle claims a value of {count} bytes, and the file has {self.size}")
        return self.file.read(count)

    def readline(self) -> bytes:
        """The next line, or what there is of one that is too long for a name."""
        return self.file.readline(_LINE)


_LINE = 10_000


class _Follower:
    def __init__(self, size: int) -> None:
        self.size = size
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[Any, int] = {}
        self.claimed = 0

    def run(self, file: io.BufferedIOBase) -> None:
        for code, argument, _ in pickletools.genops(cast("IO[bytes]", _Reader(file, self.size))):
            if code.name == "STOP":
                return
            step = getattr(self, "do_" + code.name.lower(), None)
            if step is not None:
                step(argument)
            elif code.name in _LITERALS:
                self.stack.append(argument)
            elif code.name not in ("PROTO", "FRAME"):
                raise ValueError(f"its pickle has the instruction {code.name}, which torch.save does not write")

    # --- values -------------------------------------------------------------------------------------------------------

    def do_none(self, _: Any) -> None:
        self.stack.append(None)

    def do_newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def do_newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append(_Made("dict"))

    def do_empty_set(self, _: Any) -> None:
        self.stack.append(_Made("set"))

    def do_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def do_tuple(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def do_tuple1(self, _: Any) -> None:
        self.stack[-1] = (self.stack[-1],)

    def do_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def do_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def do_append(self, _: Any) -> None:
        item = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(item)

    def do_appends(self, _: Any) -> None:
        items = self._since_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def do_setitem(self, _: Any) -> None:
        self.stack.pop()
        _check_key(self.stack.pop())

    def do_setitems(self, _: Any) -> None:
        for key in self._since_mark()[::2]:
            _check_key(key)

    def do_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def do_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_long_binget, do_long_binput = do_binget, do_binput

    # --- what would be called -----------------------------------------------------------------------------------------

    def do_global(self, argument: str) -> None:
        self.stack.append(_Global(".".join(argument.split(" ", 1))))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_Global(f"{module}.{name}"))

    def do_reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def do_newobj(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def do_build(self, _: Any) -> None:
        self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, _Made) or target.kind not in ("OrderedDict", "Namespace"):
            raise ValueError("its pickle changes an object that is neither a dictionary nor settings")

    def _call(self, what: Any, arguments: Any) -> Any:
        name = what.name if isinstance(what, _Global) else f"a {type(what).__name__}"
        if name not in _CALLED:
            raise UnsafeError(name[:100])
        if not isinstance(arguments, tuple):
            raise ValueError(f"its pickle calls {name} without arguments")
        short = name.rpartition(".")[2]
        if short in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _tensor(arguments)
        if short in ("OrderedDict", "set") and arguments:
            pairs = arguments[0] if isinstance(arguments[0], list) else [None, [[]]]
            for pair in pairs:
                _check_key(pair[0] if short == "OrderedDict" and isinstance(pair, list | tuple) and pair else pair)
        if short == "Namespace" and arguments:
            raise ValueError("its pickle makes settings with arguments")
        return _Made(short)

    def do_binpersid(self, _: Any) -> None:
        found = self.stack.pop()
        if not isinstance(found, tuple) or len(found) < 5 or found[0] not in ("storage", b"storage"):
            raise ValueError("its pickle refers to something that is no storage")
        kind, key, _location, values = found[1:5]
        item = _STORAGES.get(kind.name.rpartition(".")[2], 1) if isinstance(kind, _Global) else 0
        if not item or type(values) is not int or values < 0 or not isinstance(key, str | bytes | int):
            raise ValueError("its pickle describes a storage in a way that torch.save does not")
        before = self.storages.get(key, 0)
        self.storages[key] = max(before, values * item)
        self.claimed += self.storages[key] - before
        if self.claimed > self.size:
            raise ValueError(
                f"its tensors claim {limits.amount(self.claimed)}, and the file has {limits.amount(self.size)}"
            )
        view = found[5] if len(found) > 5 else None
        if view is not None:
            if not (isinstance(view, tuple) and len(view) == 3 and type(view[2]) is int and type(view[1]) is int):
                raise ValueError("its pickle describes a storage in a way that torch.save does not")
            if view[1] < 0 or view[2] < 0 or view[1] + view[2] > values:
                raise ValueError("a part of a storage in it is larger than the storage")
            values = view[2]
        self.stack.append(_Made("storage", values))


_LITERALS = frozenset(
    ["BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"]
)


def _check_key(key: Any) -> None:
    # the hash of nested tuples takes time without bound
    if not isinstance(key, str | bytes | int | float | None):
        raise ValueError(f"a key in it is a {type(key).__name__}, expected text or a number")


def _tensor(arguments: tuple[Any, ...]) -> _Made:
    """A tensor on a storage: within it, and with no more numbers than it has."""
    if len(arguments) < 4:
        raise ValueError("its pickle describes a tensor in a way that torch.save does not")
    storage, offset, shape, stride = arguments[:4]
    whole = all(isinstance(v, tuple) and all(type(n) is int and n >= 0 for n in v) for v in (shape, stride))
    if not isinstance(storage, _Made) or storage.kind != "storage" or type(offset) is not int or offset < 0:
        raise ValueError("its pickle describes a tensor in a way that torch.save does not")
    if not whole or len(shape) != len(stride) or len(shape) > limits.DIMENSIONS:
        raise ValueError("its pickle describes a tensor in a way that torch.save does not")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1 if count else offset
    if last > storage.values or count > storage.values or math.prod(max(1, n) for n in shape) > limits.INTEGER:
        raise ValueError(f"a tensor of shape {str(list(shape))[:80]} in it has more numbers than its storage holds")
    return _Made("tensor", count)
