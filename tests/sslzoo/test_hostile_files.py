"""Files that were made to do harm: none runs anything, takes more memory than its size justifies, or loads."""

import io
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import torch

from sslzoo import upstream, weights, zoo
from sslzoo.conversion import ConversionError, convert
from sslzoo.pickles import PickleError
from sslzoo.torch_files import TorchFileError

ERRORS = (upstream.CheckpointError, PickleError, TorchFileError)
TRAP = "sslzoo_trap"  # a module that says when it is imported, and a function that says when it is called
PROTO = b"\x80\x02"


class Call:
    """Pickles as a call of something."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def dtype(code: str) -> bytes:
    return call(named("numpy", "dtype"), text(code), b"K\x00", b"K\x01")


def array(shape: bytes, kind: bytes = b"", data: bytes = b"") -> bytes:
    """An array of a shape, a dtype and data that need not fit each other."""
    made = call(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), b"K\x00\x85", text("b"))
    return made + b"(K\x01" + shape + (kind or dtype("f4")) + b"\x89" + (data or b"C\x08" + bytes(8)) + b"tb"


def dill_module(name: str) -> bytes:
    return call(named("dill._dill", "_import_module"), text(name))


def dill_attribute(module: str, name: str) -> bytes:
    return call(named("dill._dill", "_get_attr"), dill_module(module), text(name))


def nested(depth: int) -> bytes:
    """A tuple in a tuple in a tuple."""
    return b")" + b"\x85" * depth


def doubled(times: int) -> bytes:
    """A tuple of a tuple twice, of a tuple twice, … : 2 ** times leaves, in a few bytes."""
    return b")" + b"2\x86" * times


def pickles(trap: str) -> dict[str, bytes]:
    """Programs for an unpickler, each to be read as one of BYOL's files."""
    command = f"touch {trap}"
    python = f"open({trap!r}, 'w')"
    programs = {
        "os.system": pickle.dumps(Call(os.system, command), 2),
        "os.system, protocol 0": pickle.dumps(Call(os.system, command), 0),
        "os.system, protocol 4": pickle.dumps(Call(os.system, command), 4),
        "os.system, protocol 5": pickle.dumps(Call(os.system, command), 5),
        "eval": pickle.dumps(Call(eval, python), 2),
        "exec": pickle.dumps(Call(exec, python), 2),
        "open": pickle.dumps(Call(open, trap, "w"), 2),
        "subprocess": pickle.dumps(Call(subprocess.Popen, ["touch", trap]), 2),
        "pickle in a pickle": pickle.dumps(Call(pickle.loads, pickle.dumps(Call(os.system, command))), 2),
        "import of a module": PROTO + named(TRAP, "anything") + b".",
        "getattr": PROTO + call(named("__builtin__", "getattr"), named("os", "path"), text("os")) + b".",
        "old-style class": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "dill imports os": PROTO + call(dill_attribute("os", "system"), text(command)) + b".",
        "dill imports posix": PROTO + call(dill_attribute("posix", "system"), text(command)) + b".",
        "dill imports a trap": PROTO + dill_attribute(TRAP, "anything") + b".",
        "dill gets numpy.fromfile": PROTO
        + call(dill_attribute("numpy.core.multiarray", "fromfile"), text(trap)) + b".",
        "dill gets builtins": PROTO + call(dill_attribute("__builtin__", "eval"), text(python)) + b".",
        "dill makes a named tuple of a trap": PROTO
        + call(named("dill._dill", "_create_namedtuple"), text("x"), text("y z"), text(TRAP)) + b".",
        "dill makes code": PROTO + call(named("dill._dill", "_create_code"), b"K\x00") + b".",
        "dill makes a function": PROTO + call(named("dill._dill", "_create_function"), b"N") + b".",
        "dill makes a type": PROTO + call(named("dill._dill", "_create_type"), b"N") + b".",
        "dill's array by another maker": PROTO
        + call(named("dill._dill", "_create_array"), named("posix", "system"), text(command) + b"\x85", b"N") + b".",
        "numpy.load": PROTO + call(named("numpy", "load"), text(trap)) + b".",
        "a call of text": PROTO + call(text("system"), text(command)) + b".",
        "a call of an array": PROTO + call(array(b"K\x02\x85"), b"K\x00") + b".",
        "an attribute of a maker": PROTO + named("numpy", "dtype") + b"}" + text("make") + text("x") + b"sb.",
        "an attribute of a number": PROTO + b"K\x01}" + text("real") + b"K\x02sb.",
        "an item of text": PROTO + text("abc") + text("a") + text("b") + b"s.",
        "an extension code": PROTO + b"\x82\x01.",
        "a persistent id": PROTO + text("os") + b"Q.",
        "a set": b"\x80\x04\x8f.",
        "a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
        "an array of objects": PROTO + array(b"K\x01\x85", dtype("O")) + b".",
        "an array of records": PROTO
        + array(b"K\x01\x85", dtype("V8")) + b".",
        "an array of dates": PROTO + array(b"K\x01\x85", dtype("M8")) + b".",
        "an array without dtype": PROTO + array(b"K\x02\x85", b"N") + b".",
        "a giant shape": PROTO + array(number(2**40) + b"\x85") + b".",
        "a shape beyond 64 bits": PROTO + array(number(2**70) + b"\x85") + b".",
        "a giant shape of nothing": PROTO + array(b"K\x00" + number(2**40) + b"\x86", data=b"C\x00") + b".",
        "a negative shape": PROTO + array(number(-2) + b"\x85") + b".",
        "a shape of 60 dimensions": PROTO + array(b"(" + b"K\x01" * 60 + b"t") + b".",
        "an array too short": PROTO + array(b"K\x03\x85") + b".",
        "data in another codec": PROTO
        + array(b"K\x02\x85", data=call(named("_codecs", "encode"), text("x" * 8), text("rot13"))) + b".",
        "giant bytes": PROTO + b"B" + struct.pack("<I", 2**32 - 1) + b"x.",
        "giant text": PROTO + b"X" + struct.pack("<I", 2**32 - 1) + b"x.",
        "giant text of 8 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
        "a giant buffer": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        "a giant number": PROTO + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        "a giant memo": PROTO + b"Nr" + struct.pack("<I", 2**32 - 1) + b".",
        "a name without end": PROTO + b"c" + b"x" * 100_000,
        "a deep tuple as key": PROTO + b"}" + nested(40_000) + b"Ns.",
        "a deep tuple as many keys": PROTO + b"}(" + nested(40_000) + b"Nu.",
        "a deep tuple as key of an old dict": PROTO + b"(" + nested(40_000) + b"Nd.",
        "a tuple of 2 ** 60 leaves as key": PROTO + b"}" + doubled(60) + b"Ns.",
        "a tuple of 2 ** 60 leaves as key of a FlatMapping": PROTO
        + call(named("haiku._src.data_structures", "FlatMapping"), b"]" + doubled(60) + b"N\x86a") + b".",
        "many lists": PROTO + b"]" * 200_000 + b".",
        "many dicts": PROTO + b"}" * 200_000 + b".",
        "many marks": PROTO + b"(" * 200_000 + b".",
        "many memos": PROTO + b"N" + b"".join(b"r" + struct.pack("<I", n) for n in range(100_000)) + b".",
        "no stack": PROTO + b"R.",
        "no end": PROTO + b"K\x01",
        "nothing": b"",
        "text": b"<html><body>404 Not Found</body></html>",
        "a number": PROTO + b"K\x01.",
        "an empty mapping": PROTO + b"}.",
    }  # fmt: skip
    good = small_byol()
    return programs | {
        f"the first {n} bytes of a good file": good[:n] for n in (1, 2, 100, len(good) // 2, len(good) - 1)
    }


@cache
def small_byol() -> bytes:
    return pickle.dumps({"experiment_state": np.zeros(1000), "step": np.array(1), "rng": np.zeros(2, np.uint32)}, 2)


def archive(members: dict[str, bytes], *, compress: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def storage(count: int, key: bytes, kind: str) -> bytes:
    return b"(" + text("storage") + named("torch", kind) + key + text("cpu") + number(count) + b"tQ"


def tensor(
    shape: bytes, stride: bytes, *, offset: bytes = b"K\x00", count: int = 2, kind: str = "FloatStorage", key: str = "0"
) -> bytes:
    stored = storage(count, text(key), kind)
    return call(named("torch._utils", "_rebuild_tensor_v2"), stored, offset, shape, stride, b"\x89", b"N")


def state(*tensors: bytes) -> bytes:
    """A checkpoint of SimSiam with these tensors."""
    items = b"".join(text(f"module.encoder.t{n}") + item for n, item in enumerate(tensors))
    return PROTO + b"}" + text("state_dict") + b"}(" + items + b"us."


def torch_zip(data: bytes, storage_bytes: int = 8, **more: bytes) -> bytes:
    members = {"archive/data.pkl": data, "archive/byteorder": b"little", "archive/data/0": bytes(storage_bytes)}
    return archive(members | more)


ONE = b"K\x01\x85"
TWO = b"K\x02\x85"
HUNDRED = b"(" + b"K\x01" * 100 + b"t"


def old_torch(tree: bytes, keys: Any, counts: list[int], content: bytes) -> bytes:
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    lengths = b"".join(struct.pack("<Q", n) for n in counts)
    return head + tree + pickle.dumps(keys, 2) + lengths + content


def lying(content: bytes, size: int) -> bytes:
    """An archive whose directory says that a stored member has so many bytes."""
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 20] + struct.pack("<II", size, size) + content[at + 28 :]


def torch_files(trap: str) -> dict[str, bytes]:
    """Files of torch.save, each to be read as one of SimSiam's."""
    good = state(tensor(TWO, ONE))
    system = pickle.dumps(Call(os.system, f"touch {trap}"), 2)
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    bomb = {"archive/data.pkl": good, "archive/data/0": bytes(8 << 20)}
    published_file = published.saved({"state_dict": {"module.encoder.conv1.weight": torch.zeros(50)}})
    older = published.saved({"state_dict": {"module.encoder.conv1.weight": torch.zeros(50)}}, old=True)
    return {
        "os.system in a zip": torch_zip(system),
        "os.system in an old file": system,
        "os.system behind the magic number": head + system,
        "os.system as a tensor": torch_zip(state(call(named("posix", "system"), text(f"touch {trap}")))),
        "os.system through getattr": torch_zip(
            state(call(call(named("__builtin__", "getattr"), named("torch", "Size"), text("x")), text("y")))
        ),
        "torch.load": torch_zip(state(call(named("torch.serialization", "load"), text(trap)))),
        "torch.hub": torch_zip(state(call(named("torch.hub", "load"), text("org/evil")))),
        "a class of a trap": torch_zip(state(named(TRAP, "Anything"))),
        "a zip bomb": archive(bomb, compress=True),
        "a zip bomb as pickle": archive({"archive/data.pkl": PROTO + b"]" * (8 << 20)}, compress=True),
        "a member with a lying size": lying(torch_zip(state(tensor(TWO, ONE, count=2**29))), 2**31 - 1),
        "a path upwards": torch_zip(good, **{"../../evil": b"x"}),
        "an absolute path": torch_zip(good, **{"/etc/evil": b"x"}),
        "a path upwards below its folder": torch_zip(good, **{"archive/../../evil": b"x"}),
        "two pickles": torch_zip(good, **{"archive/more/data.pkl": good}),
        "no pickle": archive({"archive/data/0": bytes(8)}),
        "big-endian numbers": torch_zip(good, **{"archive/byteorder": b"big"}),
        "a giant tensor": torch_zip(state(tensor(number(2**40) + b"\x85", ONE))),
        "a giant tensor of one number": torch_zip(state(tensor(number(2**40) + b"\x85", b"K\x00\x85"))),
        "a tensor of 100 dimensions": torch_zip(state(tensor(HUNDRED, HUNDRED))),
        "a giant storage": torch_zip(state(tensor(TWO, ONE, count=2**40))),
        "a storage that is not there": archive({"archive/data.pkl": good}),
        "a storage too short": torch_zip(good, storage_bytes=4),
        "a negative stride": torch_zip(state(tensor(TWO, number(-1) + b"\x85"))),
        "a negative offset": torch_zip(state(tensor(ONE, ONE, offset=number(-4)))),
        "an offset beyond": torch_zip(state(tensor(ONE, ONE, offset=b"K\x02"))),
        "strides beyond": torch_zip(state(tensor(TWO, b"K\x09\x85"))),
        "a storage of objects": torch_zip(state(tensor(TWO, ONE, kind="UntypedStorage"))),
        "a storage named like a path": torch_zip(
            state(tensor(TWO, ONE, key="../../../etc/passwd"))
        ),
        "a persistent id that is no storage": torch_zip(PROTO + b"(" + text("module") + text("os") + b"tQ."),
        "an old file with a giant storage": old_torch(state(tensor(TWO, ONE, count=2**40)), ["0"], [2**40], bytes(8)),
        "an old file that contradicts itself": old_torch(state(tensor(TWO, ONE)), ["0"], [2**40], bytes(8)),
        "an old file with an unknown storage": old_torch(state(tensor(TWO, ONE)), ["1"], [2], bytes(8)),
        "an old file without storages": old_torch(state(tensor(TWO, ONE)), [], [], b""),
        "an old file with a list of nothing": old_torch(state(tensor(TWO, ONE)), 7, [2], bytes(8)),
        "a tensor that is a number": torch_zip(state(b"K\x01")),
        "no state_dict": torch_zip(PROTO + b"}" + text("model") + b"}s."),
        "a state_dict that is a list": torch_zip(PROTO + b"}" + text("state_dict") + b"]s."),
        "an empty state_dict": torch_zip(PROTO + b"}" + text("state_dict") + b"}s."),
        "nothing": b"",
        "the start of a zip": b"PK\x03\x04",
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        **{f"the first {n} bytes of a good zip": published_file[:n] for n in (100, len(published_file) - 1)},
        **{f"the first {n} bytes of a good old file": older[:n] for n in (20, 100, len(older) - 1)},
    }  # fmt: skip


def encrypted(content: bytes) -> bytes:
    """An archive whose directory says that its last member is encrypted."""
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 8] + b"\x01\x00" + content[at + 10 :]


def archives(trap: str) -> dict[str, bytes]:
    """Archives, each to be read as that of SeLa's pre-activation ResNet."""
    name = "resnet-10x3k.pth"
    system = pickle.dumps(Call(os.system, f"touch {trap}"), 2)
    zeros = published.saved({"features.0.weight": torch.zeros(2 << 20)}, old=True)
    good = published.saved({"features.0.weight": torch.randn(500)}, old=True)
    random = np.random.default_rng(0).bytes(1 << 20)
    whole = published.zipped({name: good})
    return {
        "os.system in a member": published.zipped({name: system}),
        "os.system in a member that is a zip": published.zipped({name: torch_zip(system)}),
        "os.system in place of the archive": system,
        "a bomb": published.zipped({name: zeros}),
        "a bomb beside other bytes": published.zipped({"other": random, name: zeros}),
        "a bomb in a bomb": published.zipped({name: archive({"archive/data.pkl": zeros}, compress=True)}),
        "a stored member with a lying size": lying(published.zipped({name: good}, compressed=False), 2**31 - 1),
        "a packed member with a lying size": lying(whole, 3 * len(good)),
        "a packed member that says it is empty": lying(whole, 0),
        "an encrypted member": encrypted(whole),
        "a path upwards": published.zipped({f"../../{name}": good}),
        "a path upwards on Windows": published.zipped({f"..\\..\\{name}": good}),
        "an absolute path": published.zipped({f"/etc/{name}": good}),
        "no such member": published.zipped({"alexnet-10x3k-wRot.pth": good}),
        "two of that name": published.zipped({f"a/{name}": good, f"b/{name}": good}),
        "a folder of that name": published.zipped({f"{name}/": b""}),
        "another network": published.zipped({name: published.saved({"layer1.0.bn1.weight": torch.zeros(2)})}),
        "another tensor of it": published.zipped({name: published.saved({"features.9.weight": torch.zeros(2)})}),
        "no tensors": published.zipped({name: published.saved({})}),
        "an archive in the archive": published.zipped({name: whole}),
        "an empty archive": published.zipped({}),
        "damaged data": whole[:80] + bytes([whole[80] ^ 255]) + whole[81:],
        **{f"the first {n} bytes": whole[:n] for n in (4, 30, 200, len(whole) // 2, len(whole) - 1)},
    }


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, str]]:
    """(family, file, what it is) of every hostile file; `tmp_path / "sprung"` appears when one of them runs."""
    (tmp_path / f"{TRAP}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    trap = str(tmp_path / "sprung")
    files = []
    kinds = {"byol": pickles(trap), "simsiam": torch_files(trap), "sela_preact": archives(trap)}
    for family, contents in kinds.items():
        for number_, (what, content) in enumerate(contents.items()):
            path = tmp_path / f"{family}{number_}.bin"
            path.write_bytes(content)
            files.append((family, path, f"{family}: {what}"))
    return files


def outcome(family: str, path: Path) -> str:
    """The error that a file leads to."""
    try:
        upstream.read(family, path)
    except ERRORS as error:
        return str(error)
    return "it was read"


def examine(files: list[tuple[str, Path, str]]) -> dict[str, tuple[str, int, bool]]:
    """What it is -> the error, the most bytes that Python and NumPy had at once, whether the trap was imported."""
    found = {}
    for family, path, what in files:
        tracemalloc.start()
        said = outcome(family, path)
        found[what] = said, tracemalloc.get_traced_memory()[1], TRAP in sys.modules
        tracemalloc.stop()
    return found


def in_little_memory(pipe: Any, files: list[tuple[str, Path, str]]) -> None:
    """`examine` in a process that may have 256 MB more than it starts with: also what Python does not count."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
    pipe.send(examine(files))


def test_each_is_refused_with_a_clear_error_in_little_memory_and_none_runs(
    hostile: list[tuple[str, Path, str]], tmp_path: Path
) -> None:
    assert len(hostile) > 100
    if sys.platform == "linux":
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=in_little_memory, args=(theirs, hostile))
        process.start()
        theirs.close()
        found = ours.recv()
        process.join()
    else:
        found = examine(hostile)
    for _, path, what in hostile:
        said, peak, trapped = found[what]
        assert said != "it was read", what
        assert 10 < len(said) < 400, f"{what}: {said}"
        assert "more memory" not in said, what
        assert peak < (16 << 20) + 8 * path.stat().st_size, f"{what} took {peak >> 20} MB"
        assert not trapped, what
    assert not (tmp_path / "sprung").exists()


ID = "simsiam-resnet50-imagenet"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("module.encoder.bn1.weight"), "bn1.weight is missing"),
        (lambda s: s.update({"module.encoder.extra": torch.zeros(1)}), "extra is too much"),
        (lambda s: s.update({"module.stranger.weight": torch.zeros(1)}), "'module.stranger.weight' is no name of such"),
        (lambda s: s.update({"encoder.bn1.weight": torch.zeros(64)}), "'encoder.bn1.weight' is no name of such"),
        (lambda s: s.update({"module.encoder.bn1.weight": torch.zeros(3)}), r"bn1.weight: shape \(3,\), needs \(64,\)"),
        (lambda s: s.update({"module.encoder.bn1.weight": torch.full((64,), torch.nan)}), "bn1.weight: has values"),
        (lambda s: s.update({"module.encoder.bn1.running_var": torch.ones(64) * torch.inf}), "running_var: has values"),
        (lambda s: s.update({"module.encoder.bn1.running_var": -torch.ones(64)}), "running_var: a variance is"),
        (lambda s: s.update({"module.encoder.bn1.bias": torch.zeros(64).long()}), "bn1.bias: torch.int64, needs"),
        (lambda s: s.update({"module.encoder.bn1.num_batches_tracked": torch.tensor(0.5)}), "tracked: torch.float32"),
        (lambda s: s.pop("module.encoder.bn1.num_batches_tracked"), "bn1.num_batches_tracked is missing"),
        (lambda s: [s.pop(key) for key in list(s) if "layer" in key], "and [0-9][0-9] more"),
    ],
)  # fmt: skip
def test_an_encoder_that_is_not_whole_is_refused(
    tmp_path: Path, edit: Callable[[Any], object], message: str, small: zoo.ModelInfo
) -> None:
    net = published.network()
    tensors = published.prefixed("module.encoder.", published.encoder(net))
    edit(tensors)
    path = tmp_path / "checkpoint_0099.pth.tar"
    path.write_bytes(published.saved({"state_dict": tensors}))
    with pytest.raises(ConversionError, match=message) as caught:
        convert(path, small, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small(thin: str) -> zoo.ModelInfo:
    """SimSiam's row, of a thin ResNet."""
    return replace(zoo.info(ID), arch=thin)


def test_other_edges_are_refused(tmp_path: Path) -> None:
    filters = published.sobel()
    filters[1].weight.data[1, 0] *= -1
    state = {**published.prefixed("sobel_layer.sobel.", filters.state_dict()), "backbone.conv1.weight": torch.ones(1)}
    path = tmp_path / "deepcluster.pth"
    path.write_bytes(published.saved({"state_dict": state}))
    with pytest.raises(upstream.CheckpointError, match=r"'sobel_layer.sobel.1.weight' is no Sobel filter as"):
        upstream.read("openmmlab", path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p, s: p.pop("res_net50/~/initial_conv"), "conv1.weight is missing"),
        (lambda p, s: p.update({"res_net50/~/strange": {"w": np.zeros(3)}}), "res_net50/~/strange' is no module"),
        (lambda p, s: p.update({"res_net50/~/initial_conv_1": p["res_net50/~/initial_conv"]}), "two tensors for conv1"),
        (lambda p, s: p["res_net50/~/initial_conv"].update(b=np.zeros(3)), "has an array 'b'"),
        (lambda p, s: p["res_net50/~/initial_conv"].update(w=np.zeros((7, 7))), "no array of four dimensions"),
        (lambda p, s: p["res_net50/~/initial_conv"].update(w="text"), "no array of four dimensions"),
        (lambda p, s: p.update({"res_net50/~/initial_batchnorm": 3}), "no mapping of modules to mappings"),
        (lambda p, s: s.pop("res_net50/~/initial_batchnorm/~/var_ema"), "bn1.running_var is missing"),
        (lambda p, s: p.update({"res_net50/~/block_group_7/~/block_0/~/conv_0": {"w": np.zeros((1,) * 4)}}), "layer8"),
        (lambda p, s: p["res_net50/~/initial_conv"].update(w=np.ones((7, 7, 3, 64)) * np.nan), "conv1.weight: has"),
    ],
)  # fmt: skip
def test_a_byol_checkpoint_that_is_not_whole_is_refused(
    tmp_path: Path, edit: Callable[[Any, Any], object], message: str, thin: str
) -> None:
    dill = pytest.importorskip("dill")
    params, moving = published.haiku_trees(published.network())
    edit(params, moving)
    path = tmp_path / "pretrain_res50x1.pkl"
    path.write_bytes(dill.dumps(published.byol_state(params, moving), protocol=2))
    with pytest.raises(ConversionError, match=message):
        convert(path, replace(zoo.info("byol-resnet50-imagenet"), arch=thin), tmp_path / "out")
    assert not (tmp_path / "out" / weights.WEIGHTS).exists()
