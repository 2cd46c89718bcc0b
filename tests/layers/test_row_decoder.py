"""The row decoders against the compared code's order of operations, written with PyTorch's own modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.layers.row_decoder import CausalRowDecoder, RowDecoder, split_channels

DOUBLE = torch.float64


def causal_as_published(decoder: CausalRowDecoder, encoded: Tensor) -> Tensor:
    """Kernels with masked later rows, and the last convolution after the columns are repeated."""
    x = split_channels(decoder.expand(encoded), 2)
    x = decoder.first_norm(x)
    for conv in (decoder.first_conv, decoder.second_conv):
        kernel = F.pad(conv.weight, (0, 0, 0, 2))
        x = F.conv2d(x, kernel, conv.bias, padding=(4, 2), dilation=2).relu()
    x = F.interpolate(x, scale_factor=(1, 4), mode="nearest")
    x = F.conv2d(x, decoder.last_conv.weight, decoder.last_conv.bias, padding=(0, 1))
    return decoder.last_norm(F.interpolate(x, (x.shape[2], decoder.columns), mode="area"))


def bidirectional_as_published(decoder: RowDecoder, encoded: Tensor) -> Tensor:
    x = split_channels(decoder.expand(encoded), 4)
    x = decoder.second_conv(decoder.first_conv(x).relu()).relu()
    x = decoder.last_conv(F.interpolate(x, scale_factor=(2, 1), mode="nearest"))
    return F.interpolate(x, (encoded.shape[2], decoder.columns), mode="bilinear")


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_causal_decoder_is_the_published_one(rows: int) -> None:
    decoder = CausalRowDecoder(3, 10, 12).double()
    encoded = torch.randn(2, 3, rows, 10, dtype=DOUBLE)
    torch.testing.assert_close(decoder(encoded), causal_as_published(decoder, encoded))


@pytest.mark.parametrize("rows", [1, 2, 17, 18])
def test_bidirectional_decoder_is_the_published_one(rows: int) -> None:
    decoder = RowDecoder(3, 10, 14).double()
    encoded = torch.randn(2, 3, rows, 10, dtype=DOUBLE)
    torch.testing.assert_close(decoder(encoded), bidirectional_as_published(decoder, encoded))


@pytest.mark.parametrize("lengths", [[7, 12], [1, 5], [13, 2]])
def test_padding_has_no_influence(lengths: list[int]) -> None:
    decoder = RowDecoder(2, 6, 8).double()
    encoded = torch.randn(2, 2, 13, 6, dtype=DOUBLE)
    found = decoder(encoded, lengths=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = bidirectional_as_published(decoder, encoded[row : row + 1, :, :length])
        torch.testing.assert_close(found[row, :, :length], alone[0])


def test_rows_may_come_in_pieces_of_any_real_length() -> None:
    decoder = CausalRowDecoder(2, 6, 8).double()
    encoded = torch.randn(2, 2, 11, 6, dtype=DOUBLE)
    expected = decoder(encoded)
    memory = tuple(torch.zeros(2, *decoder.memory_shape, dtype=DOUBLE) for _ in range(2))
    first, memory = decoder.step(encoded[:, :, :5], memory, torch.tensor([5, 3]))
    torch.testing.assert_close(first, expected[:, :, :5])
    later = torch.stack((encoded[0, :, 5:8], encoded[1, :, 3:6]))
    second, _ = decoder.step(later, memory, torch.tensor([3, 3]))
    torch.testing.assert_close(second[0], expected[0, :, 5:8])
    torch.testing.assert_close(second[1], expected[1, :, 3:6])


def test_ill_widths_are_named() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 10"):
        CausalRowDecoder(2, 6, 10)
    with pytest.raises(ValueError, match="multiple of 2, got 9"):
        RowDecoder(2, 6, 9)
