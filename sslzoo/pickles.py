"""Pickles from outside, read without running anything that is in them. Needs no torch.

with open("pretrain_res50x1.pkl", "rb") as file:
    tree = read_pickle(file, {**NUMPY, **dill(NUMPY)})     # dicts, lists, numbers, `Array`, `Record`

A pickle is a program: it names functions and classes, and calls them. Here it gets, for the few names in a table,
makers of this module, and for any other name an error. Of Python's own unpickler only the operations that protocol 2
needs for data are left, and every length, shape and count is held to what the file has before anything is made of it.
"""

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

Names = Mapping[tuple[str, str], Any]

LINE = 1024  # bytes of the longest name of a module or class
LONG_TEXT = 1 << 20  # characters; longer ones are the content of arrays, which no pickle needs twice
# One operation makes an object of some 100 bytes: a file of any size may make a few, a large one more.
FREE_STEPS, BYTES_A_STEP = 100_000, 64
# frames (protocol 4), sets, buffers, extension codes, old-style classes and text numbers are left out
_OPERATIONS = (
    *("PROTO", "STOP", "MARK", "POP", "POP_MARK", "DUP", "BINGET", "LONG_BINGET", "BINPERSID"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT"),
)
_CODES = [getattr(pickle, name)[0] for name in _OPERATIONS]
_NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}


class PickleError(ValueError):
    """A pickle is damaged, or asks for what is not allowed here."""


@dataclass(frozen=True)
class Maker:
    """What a pickle may call, in the place of the function or class that it names."""

    make: Callable[..., Any]


class Inert:
    """In the place of an object that nobody needs."""


class Array:
    """A NumPy array of numbers, in the making."""

    value: np.ndarray[Any, Any]

    def build(self, state: Any) -> None:
        """Take what NumPy's `__reduce__` gives: version, shape, dtype, whether the order is Fortran's, bytes."""
        _, shape, dtype, fortran, data = state
        shape = sizes(shape)
        if not isinstance(dtype, DType):
            raise PickleError("an array without a dtype.")
        content = data.encode("latin1") if isinstance(data, str) else data  # str: of Python 2
        wanted = math.prod(shape) * dtype.value.itemsize
        if not isinstance(content, bytes) or len(content) != wanted:
            found = f"{len(content)} bytes" if isinstance(content, bytes) else type(content).__name__
            raise PickleError(f"an array of shape {shape} needs {wanted} bytes, it has {found}.")
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order="F" if fortran else "C")


class DType:
    """A dtype of numbers, in the making."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in _NUMBERS:
            raise PickleError(f"an array of dtype {code!r}; only numbers are read.")
        self.value: np.dtype[Any] = np.dtype(code)

    def build(self, state: Any) -> None:
        """Take the order of bytes; what follows it is of structured dtypes."""
        self.value = self.value.newbyteorder(state[1])


@dataclass(frozen=True)
class Record:
    """A named tuple.

    Attributes:
        name: Of its class.
        fields: Name -> value.
    """

    name: str
    fields: Mapping[str, Any]


class Table(dict[Any, Any]):
    """A mapping of some class of its own, whose attributes are dropped."""


def sizes(shape: Any) -> tuple[int, ...]:
    """A shape, if it is one.

    Raises:
        PickleError: It is not.
    """
    if not (isinstance(shape, tuple) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**48 for n in shape)):
        raise PickleError("an array whose shape is no tuple of up to 8 sizes.")
    return shape


def _encode(text: Any, encoding: Any) -> bytes:
    """Protocol 2 has no bytes: it writes them as text, and names the codec that gives them back."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise PickleError("bytes of another codec than latin1.")
    return text.encode("latin1")


def _scalar(dtype: Any, data: Any) -> Any:
    array = Array()
    array.build((1, (), dtype, False, data))
    return array.value[()]


def table(mapping: Any = ()) -> Table:
    """A mapping, from another or from pairs."""
    found = Table()
    for key, value in mapping.items() if isinstance(mapping, dict) else mapping:
        _check_key(key)
        found[key] = value
    return found


BASICS: Names = {
    ("_codecs", "encode"): Maker(_encode),
    ("__builtin__", "bytes"): Maker(lambda: b""),  # how protocol 2 writes empty ones
    ("collections", "OrderedDict"): Maker(table),
}
NUMPY: Names = {
    **BASICS,
    ("numpy", "ndarray"): Maker(lambda *_: Array()),
    ("numpy", "dtype"): Maker(DType),
    **{
        (f"{package}.{module}", name): Maker(maker)
        for package in ("numpy.core", "numpy._core")
        for module in ("multiarray", "_multiarray_umath")
        for name, maker in (("_reconstruct", lambda *_: Array()), ("scalar", _scalar))
    },
}


def dill(names: Names) -> Names:
    """Names of dill's own functions, which import, and get attributes, of anything: here, of `names` only.

    Args:
        names: What may be named through them.
    """

    def create_array(make: Any, args: Any, state: Any, _: Any = None) -> Any:
        array = _called(make, args)
        _built(array, state)
        return array

    return {
        ("dill._dill", "_import_module"): Maker(lambda module, *_: Record("module", {"name": module})),
        ("dill._dill", "_get_attr"): Maker(lambda module, name: _find(names, module.fields["name"], name)),
        ("dill._dill", "_create_namedtuple"): Maker(lambda name, fields, *_: record(name, fields)),
        ("dill._dill", "_create_array"): Maker(create_array),
    }


def record(name: Any, fields: Any) -> Maker:
    """What makes records of these fields."""
    if not (isinstance(name, str) and isinstance(fields, tuple) and all(isinstance(f, str) for f in fields)):
        raise PickleError("a named tuple without names.")
    return Maker(lambda *values: Record(name, dict(zip(fields, values, strict=True))))


def read_pickle(
    file: BinaryIO,
    names: Names,
    *,
    size: int | None = None,
    justified: int | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle of protocol 2 or 3, from where a file stands; the file then stands behind it.

    Args:
        file: Read no further than the pickle.
        names: (module, name) -> `Maker`, or another object that may be mentioned, not called.
        size: Bytes that the pickle may have; None is what is left of the file.
        justified: Bytes that the whole checkpoint has, if the pickle is a part of it: bounds how much it may make.
        persistent: What to give for a persistent id.

    Raises:
        PickleError: Damaged, truncated, or it asks for what is not allowed.
    """
    if size is None:
        here = file.tell()
        size = file.seek(0, 2) - here
        file.seek(here)
    steps = FREE_STEPS + max(size, justified or 0) // BYTES_A_STEP
    try:
        return _Unpickler(_Window(file, size, steps), names, persistent).load()
    except PickleError:
        raise
    except MemoryError:
        raise PickleError("it needs more memory than there is.") from None
    except Exception as error:  # whatever a wrong operand leads to
        raise PickleError(f"it is damaged ({type(error).__name__}: {str(error)[:100]}).") from None


class _Window:
    """A file of which no more can be read than it has, whatever length is asked for, in no more than so many steps."""

    def __init__(self, file: BinaryIO, size: int, steps: int) -> None:
        self.file, self.left, self.steps = file, size, steps

    def read(self, length: int) -> bytes:
        self.steps -= 1
        if self.steps < 0:
            raise PickleError("it makes more objects than a checkpoint of its size has.")
        if length > self.left:
            raise PickleError(f"it is truncated, or damaged: {length:,} bytes are announced, {self.left:,} are left.")
        self.left -= length
        return self.file.read(length)

    def readline(self) -> bytes:
        line = self.file.readline(min(LINE, self.left))
        if not line.endswith(b"\n"):
            raise PickleError("it is truncated, or damaged: a name without end.")
        self.left -= len(line)
        return line


def _find(names: Names, module: Any, name: Any) -> Any:
    try:
        return names[module, name]
    except (KeyError, TypeError):
        raise PickleError(f"it asks for {str(module)[:80]}.{str(name)[:80]}, which no checkpoint needs.") from None


def _called(function: Any, args: Any) -> Any:
    if not isinstance(function, Maker) or not isinstance(args, tuple):
        raise PickleError("it calls something that it was not given to call.")
    return function.make(*args)


def _built(thing: Any, state: Any) -> None:
    if isinstance(thing, (Array, DType)):
        thing.build(state)
    elif not isinstance(thing, (Inert, Table, Record)):
        raise PickleError(f"it sets attributes of {type(thing).__name__}.")


def _check_key(key: Any) -> None:
    """Hashing a tuple of tuples may take for ever, or overflow the stack."""
    if not isinstance(key, (str, int, float, bytes, type(None))):
        raise PickleError(f"a mapping has a key of {type(key).__name__}.")


class _Operations(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        raise PickleError(f"it is damaged, or no pickle of data: operation {code:#04x}.")


class _Unpickler(pickle._Unpickler):
    """The one that is written in Python: its operations are a dict, of which a part is taken."""

    dispatch = _Operations({code: pickle._Unpickler.dispatch[code] for code in _CODES})
    # what the operations share: set by the base class, and not declared there
    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, window: _Window, names: Names, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(window, encoding="latin1")
        self.names, self.persistent = names, persistent

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise PickleError("it refers to something outside of it.")
        return self.persistent(pid)

    def load_global(self) -> None:
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        self.append(_find(self.names, module, name))

    def load_call(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], args)

    def load_build(self) -> None:
        state = self.stack.pop()
        _built(self.stack[-1], state)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(table(zip(items[::2], items[1::2], strict=True)))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def load_setitems(self) -> None:
        self._put(self.pop_mark())

    def _put(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise PickleError(f"it sets items of {type(self.stack[-1]).__name__}.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            self.stack[-1][key] = value

    def load_put(self) -> None:
        self._remember(self.read(1)[0])

    def load_long_put(self) -> None:
        self._remember(int.from_bytes(self.read(4), "little"))

    def _remember(self, number: int) -> None:
        top = self.stack[-1]
        if not (isinstance(top, (str, bytes)) and len(top) > LONG_TEXT):  # half of the memory, for large checkpoints
            self.memo[number] = top

    dispatch[pickle.GLOBAL[0]] = load_global
    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_call
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BINPUT[0]] = load_put
    dispatch[pickle.LONG_BINPUT[0]] = load_long_put
