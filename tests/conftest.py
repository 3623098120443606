"""What all tests share: device marks, poisoned memory, Triton's interpreter where there is no GPU."""

import os

import hypothesis
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
REQUIRE_GPU = os.environ.get("VSTAR_REQUIRE_GPU") == "1"

if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

torch.set_num_threads(1)  # tiny models lose more to waiting threads than they gain
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for child processes

hypothesis.settings.register_profile("vstar", deadline=None, max_examples=100, derandomize=True)
hypothesis.settings.load_profile("vstar")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests without a GPU, or fail them where VSTAR_REQUIRE_GPU=1 says that there is one."""
    if item.get_closest_marker("gpu") is None or HAS_GPU:
        return
    if REQUIRE_GPU:
        pytest.fail("VSTAR_REQUIRE_GPU=1, but torch sees no GPU", pytrace=False)
    pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device a test can run on."""
    return request.param


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty and its like hand out with NaN or the largest integer: unwritten outputs show."""
    for name in ("empty", "empty_like", "empty_strided"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, plain=plain, **kwargs: _poison(plain(*args, **kwargs)))
