"""What ports get wrong in a network, done to a right one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


def other_epsilon(model: Any) -> None:
    model.blocks[3].stack.conv2.bn_pw.eps = 1e-5


def swapped_statistics(model: Any) -> None:
    norm = model.stem[1].bn
    norm.running_mean, norm.running_var = norm.running_var.clone(), norm.running_mean.clone()


def swapped_scale_and_centre(model: Any) -> None:
    norm = model.blocks[11].stack.conv1.bn_dw
    norm.weight, norm.bias = parameter(norm.bias.data), parameter(norm.weight.data)


def transposed_kernel(model: Any) -> None:
    conv = model.stem[0].conv
    conv.weight = parameter(conv.weight.data.transpose(2, 3))


def transposed_depthwise_kernel(model: Any) -> None:
    conv = model.blocks[7].stack.conv3.conv_dw
    conv.weight = parameter(conv.weight.data.transpose(2, 3))


def one_element(model: Any) -> None:
    conv = model.blocks[6].stack.conv2.conv_pw
    weight = conv.weight.data.clone()
    weight.view(-1)[int(weight.abs().argmax())] *= 1 + 1e-6
    conv.weight = parameter(weight)


def missing_relu(model: Any) -> None:
    model.blocks[5].stack.act2 = nn.Identity()


def relu_before_the_shortcut(model: Any) -> None:
    model.blocks[4].register_forward_pre_hook(lambda _module, inputs: (inputs[0].relu(), *inputs[1:]))


def exchanged_layers(model: Any) -> None:
    one, other = model.blocks[4].stack.conv1.conv_dw, model.blocks[5].stack.conv1.conv_dw
    one.weight, other.weight = other.weight, one.weight


def shifted_logits(model: Any) -> None:
    model.head.fc.weight = parameter(model.head.fc.weight.data.roll(1, 0))
    model.head.fc.bias = parameter(model.head.fc.bias.data.roll(1, 0))


def keras_padding_of_a_strided_convolution(model: Any) -> None:
    conv = model.stem[0].conv
    conv.padding = (0, 0)
    conv.register_forward_pre_hook(lambda _module, inputs: (nn.functional.pad(inputs[0], (0, 1, 0, 1)),))


def symmetric_pool(model: Any) -> None:
    model.block1.rep[5] = nn.MaxPool2d(3, stride=2, padding=1)


def exchanged_blocks(model: Any) -> None:
    model.block6, model.block7 = model.block7, model.block6


def other_shortcut_epsilon(model: Any) -> None:
    model.block12.skipbn.eps = 1e-5
