"""`patchify`: the kernel against the reference, the reference against the processors of transformers."""

import os

import pytest
import torch
from vstar_fast.kernels.patchify import Layout, patchify
from vstar_fast.kernels.patchify.layout import BT601
from vstar_fast.kernels.patchify.reference import run as reference

from vstar_fast import torchvision_compat
from vstar_fast.errors import ConfigError

torchvision_compat.ensure()
triton_kernel = pytest.importorskip("vstar_fast.kernels.patchify.triton_kernel")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the kernel is compiled here")

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def clip(frames=3, height=56, width=84, channels=3):
    made = torch.Generator().manual_seed(frames * width)
    return torch.randint(0, 256, (frames, channels, height, width), dtype=torch.uint8, generator=made)


LAYOUTS = {
    "plain": Layout(MEAN, STD),
    "Qwen2-VL": Layout(MEAN, STD, 14, 2, 2),
    "patches of one frame": Layout(MEAN, STD, 7, 1, 1),
    "YCbCr": Layout(MEAN, STD, 14, 2, 2, BT601),
    "YCbCr, plain": Layout(MEAN, STD, matrix=BT601),
}


@interpreted
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_is_the_reference(name, dtype, poison):
    """An odd number of frames: the last one stands twice."""
    frames = clip()
    loose = 1e-5 if dtype == torch.float32 else 2e-3
    ours, want = triton_kernel.run(frames, LAYOUTS[name], dtype), reference(frames, LAYOUTS[name], dtype)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, want, atol=loose, rtol=loose)


@interpreted
def test_colours_near_a_half_are_rounded_as_the_reference_does(poison):
    """A sum in another order, or with products that are not rounded, ends on the other side of some of them."""
    made = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (400_000, 3), dtype=torch.uint8, generator=made)
    rows = torch.tensor(BT601, dtype=torch.float32).double().view(3, 4)
    exact = colours.double() @ rows[:, :3].t() + rows[:, 3]
    near = colours[((exact % 1 - 0.5).abs() < 2e-5).any(1)]
    assert len(near) >= 30
    frames = near.t().reshape(1, 3, 1, -1)
    layout = Layout((0.0,) * 3, (1.0,) * 3, matrix=BT601)
    assert torch.equal(triton_kernel.run(frames, layout, torch.float32), reference(frames, layout, torch.float32))


@interpreted
def test_frames_of_any_strides(poison):
    """[F, H, W, C] as a reader gives it, and a part of larger frames."""
    frames = clip(2, 28, 56)
    last = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    large = torch.zeros(2, 3, 40, 60, dtype=torch.uint8)
    large[:, :, 3:31, 2:58] = frames
    for given in (last, large[:, :, 3:31, 2:58]):
        for name in ("plain", "Qwen2-VL"):
            ours = triton_kernel.run(given, LAYOUTS[name], torch.float32)
            torch.testing.assert_close(ours, reference(frames, LAYOUTS[name], torch.float32))


def test_colours_are_those_of_bt601():
    """Black, white, and a red whose values ITU-R BT.601 gives."""
    ycbcr = torch.tensor([[16, 128, 128], [235, 128, 128], [81, 90, 240]], dtype=torch.uint8)
    found = patchify(ycbcr[:, :, None, None], Layout((0.0,) * 3, (1.0,) * 3, matrix=BT601))[:, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([[0.0, 0, 0], [255, 255, 255], [254, 0, 0]]), atol=1.0, rtol=0)


@pytest.mark.parametrize("frames", [4, 5])
def test_qwen_patches_are_transformers_own(frames):
    from transformers import Qwen2VLVideoProcessor

    own = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    data = clip(frames)
    want = own(videos=[[data]], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    mean, std = (tuple(255 * x for x in numbers) for numbers in (own.image_mean, own.image_std))
    found = patchify(data, Layout(mean, std, own.patch_size, own.temporal_patch_size, own.merge_size))
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_plain_frames_are_transformers_own():
    from transformers import LlavaOnevisionVideoProcessor

    own = LlavaOnevisionVideoProcessor(do_resize=False)
    data = clip()
    want = own(videos=[[data]], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][0]
    mean, std = (tuple(255 * x for x in numbers) for numbers in (own.image_mean, own.image_std))
    torch.testing.assert_close(patchify(data, Layout(mean, std)), want, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    layout = LAYOUTS["Qwen2-VL"]
    with pytest.raises(ConfigError, match="84 x 42 do not divide into squares of 28"):
        patchify(clip(2, 42, 84), layout)
    with pytest.raises(ConfigError, match="they are uint8"):
        patchify(clip().float(), layout)
    with pytest.raises(ConfigError, match="frames have 1 channels, the layout has 3"):
        patchify(clip(channels=1), layout)
    with pytest.raises(ConfigError, match="patches of torch.float64"):
        patchify(clip(), layout, torch.float64)
    with pytest.raises(ConfigError, match="has 12 numbers"):
        Layout(MEAN, STD, matrix=(1.0,))
    with pytest.raises(ConfigError, match="std none of 0"):
        Layout(MEAN, (0.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="are no sizes"):
        Layout(MEAN, STD, temporal=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(name, dtype):
    frames = clip(5, 448, 336)
    found = patchify(frames.cuda(), LAYOUTS[name], dtype, backend="triton")
    loose = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.cpu(), reference(frames, LAYOUTS[name], dtype), atol=loose, rtol=loose)
