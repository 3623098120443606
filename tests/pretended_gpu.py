"""A GPU without a GPU: fake tensors on "cuda" go through the code that a GPU runs, up to the launch of its kernels.

Nothing may make the host wait: a value that is read, a shape that depends on values, a copy between host and GPU
that is not pinned and asynchronous.
"""

import contextlib
import types

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vstar_fast.kernels.constrain import cuda as constrain_cuda
from vstar_fast.kernels.value_match import job as value_job

import vstar_fast
from vstar_fast import _C, backends

CUDA = torch.device("cuda", 1)
"""Not the one that is current, so that launches must say where."""


class WaitsForTheGpu(AssertionError):
    """The host would wait."""


class NoCopies(TorchDispatchMode):
    """Inside, a copy that waits is an error, as reading a value is in FakeTensorMode."""

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor)]
        copies = function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        asked = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2] is True)
        if copies and not asked and len({x.device.type for x in tensors}) > 1:
            raise WaitsForTheGpu(f"{function} from {args[0].device} waits for the GPU")
        return made


class HostReads(TorchDispatchMode):
    """Reading a value that lies on the host waits for nothing; there a fake one is 0."""

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "cpu":
            return 0
        return function(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Methods as operators, which a torch without CUDA takes for what lies on a GPU."""

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__ and args[0].is_cuda:
            return indexed(*args)
        if function is torch.Tensor.__setitem__ and args[0].is_cuda:
            return indexed(*args[:2]).fill_(args[2])
        return OPERATORS.get(function, function)(*args, **(kwargs or {}))


def contiguous(tensor):
    return tensor if tensor.is_contiguous() else torch.ops.aten.clone(tensor, memory_format=torch.contiguous_format)


OPERATORS = {
    torch.Tensor.copy_: torch.ops.aten.copy_,
    torch.Tensor.nonzero: torch.ops.aten.nonzero,
    torch.Tensor.contiguous: contiguous,
}


def indexed(tensor, index):
    """tensor[index] for numbers, slices and one tensor."""
    dim = 0
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, int):
            tensor = torch.ops.aten.select(tensor, dim, part)
        elif isinstance(part, slice):
            tensor = torch.ops.aten.slice(tensor, dim, part.start, part.stop)
            dim += 1
        else:
            tensor = torch.ops.aten.index(tensor, [*[None] * dim, part])
            dim += 1
    return tensor


_current = [torch.device("cuda", 0)]


@contextlib.contextmanager
def current(device):
    """As torch.cuda.device."""
    _current.append(torch.device(device))
    try:
        yield
    finally:
        _current.pop()


class Launches:
    """The compiled functions: those for a GPU are noted in `names` and do nothing."""

    def __init__(self):
        self.names = []

    def __getattr__(self, name):
        return (lambda *_: self._note(name)) if name.endswith("_cuda") else getattr(_C, name)

    def _note(self, name):
        assert _current[-1] == CUDA, f"{name} is launched on {_current[-1]}"
        self.names.append(name)


class Kernel:
    """Stands for a Triton kernel: notes its grid."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        def launch(*args, **_):
            places = {x.device for x in args if isinstance(x, torch.Tensor)}
            assert places == {_current[-1]}, f"launched on {_current[-1]} for tensors on {places}"
            self.grids.append(grid)

        return launch


@contextlib.contextmanager
def pretended_gpu(monkeypatch, backend="cuda"):
    """Yields what was launched; every op takes `backend` meanwhile."""
    launches = Launches()
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(backends, "choose", lambda *_: backends.Choice(backend, "pretended"))
    monkeypatch.setattr(vstar_fast, "_C", launches)
    monkeypatch.setattr(constrain_cuda, "_C", launches)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), HostReads(), Methods():
            yield launches
    finally:
        value_job._tables.cache_clear()
