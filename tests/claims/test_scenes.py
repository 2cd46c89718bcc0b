"""Scenes: what is marked is what is painted, objects keep apart, and colours do not give the classes away."""

from __future__ import annotations

import torch

from regard.claims._scenes import CLASSES, COLOURS, GRID, PATCH, make_scenes


def test_scenes_are_what_their_labels_say() -> None:
    scenes = make_scenes(40, seed=3)
    assert scenes.images.shape == (40, 3, GRID * PATCH, GRID * PATCH)
    clean = torch.nn.functional.avg_pool2d(scenes.images, PATCH) / 2 + 0.5
    for image, labels, parts in zip(clean, scenes.labels, scenes.parts, strict=True):
        found = torch.zeros(len(CLASSES))
        for number in range(1, int(parts.max()) + 1, 2):
            seen = [image[:, parts == part].mean(dim=1) for part in (number, number + 1)]
            colours = [int((torch.from_numpy(COLOURS).float() - colour).norm(dim=1).argmin()) for colour in seen]
            found[CLASSES.index((min(colours), max(colours)))] = 1
        assert torch.equal(found, labels)
        assert float(image[:, parts == 0].max()) < 0.3


def test_two_or_three_objects_of_two_parts_keep_apart() -> None:
    scenes = make_scenes(40, seed=4)
    assert set(scenes.labels.sum(dim=1).tolist()) == {2, 3}
    for labels, parts in zip(scenes.labels, scenes.parts, strict=True):
        assert int(parts.max()) == 2 * int(labels.sum())
        objects = (parts + 1) // 2
        assert [int((parts == number).sum()) for number in range(1, int(parts.max()) + 1)] == [4] * int(parts.max())
        for shifted, whole in ((objects[1:], objects[:-1]), (objects[:, 1:], objects[:, :-1])):
            assert ((shifted == whole) | (shifted == 0) | (whole == 0)).all()


def test_a_seed_is_one_set_of_scenes() -> None:
    assert torch.equal(make_scenes(3, seed=1).images, make_scenes(3, seed=1).images)
    assert not torch.equal(make_scenes(3, seed=1).images, make_scenes(3, seed=2).images)
