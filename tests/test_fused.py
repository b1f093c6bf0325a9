"""Fused convolutions and products against torch's plain ones."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from helpers import TinyConfig, tiny_model
from hypothesis import given, settings

import fused
from fused import convolve, fuses, linear, multiply, widens
from model import ConvOfTwo, ResNet

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.02}
needs_fusion = pytest.mark.skipif(not fuses("cpu", torch.float32), reason="this torch has no fused convolutions")


@pytest.fixture
def forget():
    """What this process knows of its processor is found out again, before the test and after it."""
    fuses.cache_clear()
    widens.cache_clear()
    yield
    fuses.cache_clear()
    widens.cache_clear()


def operands(images, channels, out, side, kernel, groups, dtype):
    x = torch.randn(images, channels * groups, side, side + 3).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(out * groups, channels, kernel, kernel) / (channels * kernel**2) ** 0.5).to(dtype)
    return x, weight.contiguous(memory_format=torch.channels_last), torch.randn(out * groups).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9)),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2]),
    adds=st.booleans(),
    relu=st.booleans(),
    dtype=st.sampled_from(list(LIMITS)),
)
def test_fused_convolution_is_the_plain_one(sizes, kernel, stride, groups, adds, relu, dtype):
    torch.manual_seed(0)
    x, weight, bias = operands(*sizes, kernel, groups, dtype)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, kernel // 2, 1, groups)
    residual = torch.randn_like(exact).to(dtype) if adds else None
    exact = exact + residual.double() if adds else exact
    exact = exact.relu() if relu else exact
    for grad in (False, True):
        copied = residual.clone() if adds else None
        with torch.set_grad_enabled(grad):
            result = convolve(x, weight, bias, stride, kernel // 2, groups, copied, relu)
        assert result.dtype == dtype
        assert result.shape == exact.shape
        if min(x.shape) > 1 and len(weight) > 1:  # else torch itself returns either layout
            assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result.double(), exact, rtol=LIMITS[dtype], atol=LIMITS[dtype])


@needs_fusion
def test_inference_takes_the_fused_operation_and_gradients_the_plain_one(monkeypatch):
    x, weight, bias = operands(1, 4, 4, 5, 3, 1, torch.float32)
    calls = []
    monkeypatch.setattr(fused, "_onednn", lambda *numbers: calls.append(numbers[6:]) or numbers[0])
    with torch.no_grad():
        convolve(x, weight, bias, 1, 1, relu=True)
        convolve(x.contiguous(), weight, bias, 1, 1, relu=True)  # not channels_last
        convolve(x[:0], weight, bias, 1, 1, relu=True)
        with torch.autocast("cpu", torch.bfloat16):
            convolve(x, weight, bias, 1, 1, relu=True)
        with pytest.warns(DeprecationWarning, match=r"torch\.jit\.trace"):
            torch.jit.trace(lambda x: convolve(x, weight, bias, 1, 1, relu=True), x, check_trace=False)
    convolve(x, weight, bias, 1, 1, relu=True)
    assert calls == [(None, True)]


@needs_fusion
@pytest.mark.parametrize(
    "broken",
    [
        lambda x, *_: x,
        lambda x, *_: x * float("nan"),
        lambda x, *_: x[:, :3],
        lambda *_: torch.ops.mkldnn._no_such_operation(),
    ],
)
def test_an_operation_that_is_wrong_or_missing_is_not_used(broken, monkeypatch, forget):
    monkeypatch.setattr(fused, "_onednn", broken)
    assert not fuses("cpu", torch.float32)
    x, weight, bias = operands(1, 4, 4, 5, 3, 1, torch.float32)
    with torch.no_grad():
        result = convolve(x, weight, bias, 1, 1, relu=True)
    torch.testing.assert_close(result, F.conv2d(x, weight, bias, 1, 1).relu())


@needs_fusion
@pytest.mark.parametrize("broken", [lambda x, *_: x[:, :16], lambda *_: torch.ops.mkldnn._no_such_operation()])
def test_a_product_that_is_wrong_or_missing_is_not_used(broken, monkeypatch, forget):
    monkeypatch.setattr(fused, "_product", broken)
    assert not fuses("cpu", torch.float32)
    x, weight, bias = torch.randn(16, 16), torch.randn(16, 16), torch.randn(16)
    with torch.no_grad():
        torch.testing.assert_close(multiply(x, weight, bias), F.linear(x, weight, bias))


def test_other_devices_and_dtypes_are_not_fused():
    assert not fuses("mps", torch.float32)
    assert not fuses("cpu", torch.float64)


def test_a_trained_weight_gets_the_gradients_of_the_plain_operations():
    x, weight, bias = operands(2, 3, 4, 5, 3, 1, torch.float32)
    residual = torch.randn(2, 4, 5, 8)
    tensors = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    convolve(x, weight, bias, 1, 1, 1, residual, relu=True).square().sum().backward()
    fused_grads = [tensor.grad.clone() for tensor in tensors]
    expected = torch.autograd.grad((F.conv2d(x, weight, bias, 1, 1) + residual).relu().square().sum(), tensors)
    torch.testing.assert_close(fused_grads, list(expected))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_products_are_those_of_torch(relu, rows):
    for dtype, limit in LIMITS.items():
        x, weight, bias = torch.randn(rows, 40).to(dtype), torch.randn(9, 40).to(dtype) / 6, torch.randn(9).to(dtype)
        exact = F.linear(x.double(), weight.double(), bias.double())
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                result = multiply(x, weight, bias, relu)
            assert result.dtype == dtype
            torch.testing.assert_close(result.double(), exact.relu() if relu else exact, rtol=limit, atol=limit)


def test_a_convolution_of_two_maps_is_that_of_the_joined_maps():
    conv = ConvOfTwo((6, 2), 5, 3, relu=True)
    torch.nn.init.normal_(conv.weight)
    x, second = torch.randn(2, 6, 7, 7), torch.randn(2, 2, 7, 7)
    expected = F.conv2d(torch.cat([x, second], 1), conv.weight, conv.bias, padding=1).relu()
    torch.testing.assert_close(conv(x, second), expected)
    with torch.no_grad():
        torch.testing.assert_close(conv(x, second), expected)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext101_32x4d"])
def test_without_gradients_the_feature_maps_are_the_same(backbone):
    """Blocks add into their input then: none of the maps that are returned may be one."""
    torch.manual_seed(0)
    network = ResNet(TinyConfig(BACKBONE=backbone, BACKBONE_WIDTH=0.25))
    x = torch.randn(1, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    expected, before = network(x), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected)
    assert torch.equal(x, before)


def test_the_network_detects_the_same_without_fusion(monkeypatch, forget):
    model, image = tiny_model(), torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8).numpy()
    (one,) = model.detect([image])
    monkeypatch.setattr(fused, "fuses", lambda *_: False)
    (other,) = model.detect([image])
    assert len(one["class_ids"])
    assert (one["class_ids"] == other["class_ids"]).all()
    torch.testing.assert_close(torch.as_tensor(one["rois"]), torch.as_tensor(other["rois"]), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.as_tensor(one["mask_scores"]), torch.as_tensor(other["mask_scores"]))


def test_a_program_that_is_recorded_is_told_from_a_run(monkeypatch):
    assert not fused.is_exporting()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert fused.is_exporting()


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "expected"),
    [
        ("x86_64", False, False, True),  # oneDNN imitates bfloat16 by AVX-512
        ("AMD64", False, False, True),
        ("x86_64", True, False, False),
        ("x86_64", False, True, False),
        ("aarch64", False, False, False),
    ],
)
def test_a_cpu_needs_instructions_for_bfloat16(machine, avx512_bf16, amx, expected, forget, monkeypatch):
    monkeypatch.setattr(fused.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert widens("cpu", torch.bfloat16) == expected
    assert not (expected and fuses("cpu", torch.bfloat16)), "the fused operations would imitate it"


def test_a_cpu_without_bfloat16_multiplies_in_float32(forget, monkeypatch, caplog):
    x, weight, bias = operands(2, 5, 4, 6, 3, 1, torch.bfloat16)
    rows, matrix = torch.randn(7, 5).bfloat16(), torch.randn(4, 5).bfloat16().requires_grad_()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    result = convolve(x, weight, bias, padding=1, relu=True)
    product = linear(rows, matrix, bias)
    product.sum().backward()
    assert torch.equal(result, F.conv2d(x.float(), weight.float(), bias.float(), padding=1).bfloat16().relu())
    assert torch.equal(product, F.linear(rows.float(), matrix.float(), bias.float()).bfloat16())
    assert torch.equal(matrix.grad, rows.float().sum(dim=0).bfloat16().expand(4, 5))
    assert [record.message.split(":")[0] for record in caplog.records] == ["this processor cannot compute in bfloat16"]
    assert not widens("cpu", torch.float32)
    assert not widens("cuda", torch.bfloat16)
