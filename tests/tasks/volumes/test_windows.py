from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from regard.tasks.volumes.windows import Windows, slide


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    # padding makes what a voxel gets depend on where its window lies
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1), nn.Softmax(dim=1))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((17, 11, 13), (8, 8, 8)), ((5, 11, 13), (8, 4, 16)), ((8, 8, 8), (8, 8, 8)), ((23, 3, 2), (4, 4, 4))],
    ids=str,
)
def test_slabs_together_equal_monai(network, shape, size, overlap, batch) -> None:
    volume = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    seen = []
    windows = Windows(size, overlap, batch)
    slabs = [
        (start, slab.clone())
        for start, slab in slide(network, volume, windows, device=torch.device("cpu"), tick=seen.append)
    ]
    ours = torch.cat([slab for _, slab in slabs], dim=1)
    assert [start for start, _ in slabs] == np.cumsum([0, *(slab.shape[1] for _, slab in slabs)])[:-1].tolist()
    with torch.no_grad():
        theirs = sliding_window_inference(torch.from_numpy(volume)[None], size, 2, network, overlap, mode="gaussian")[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert sum(seen) == windows.count(shape)


def test_a_file_that_is_mapped_into_memory_is_taken(network, tmp_path) -> None:
    volume = np.memmap(tmp_path / "v", dtype=np.float32, mode="w+", shape=(2, 9, 9, 9))
    volume[:] = np.random.default_rng(0).normal(size=volume.shape)
    windows = Windows((4, 4, 4), 0.5, 2)
    mapped = torch.cat([slab.clone() for _, slab in slide(network, volume, windows, device=torch.device("cpu"))], dim=1)
    plain = [slab.clone() for _, slab in slide(network, np.array(volume), windows, device=torch.device("cpu"))]
    assert torch.equal(mapped, torch.cat(plain, dim=1))


def test_only_the_slab_that_windows_reach_is_kept(network) -> None:
    volume = np.zeros((2, 64, 8, 8), dtype=np.float32)
    depths = [
        slab.shape[1] for _, slab in slide(network, volume, Windows((8, 8, 8), 0.5, 4), device=torch.device("cpu"))
    ]
    assert max(depths) <= 8
    assert sum(depths) == 64


@pytest.mark.parametrize(
    ("size", "overlap", "batch"), [((0, 4, 4), 0.2, 1), ((4, 4, 4), 1.0, 1), ((4, 4, 4), -0.1, 1), ((4, 4, 4), 0.0, 0)]
)
def test_windows_that_are_none_are_refused(size, overlap, batch) -> None:
    with pytest.raises(ValueError, match="must"):
        Windows(size, overlap, batch)
