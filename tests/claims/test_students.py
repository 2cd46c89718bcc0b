"""The students of distillation claims: what they see, and that they start from their teacher's projections."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from regard.claims._students import (
    HashedStudent,
    PerformerStudent,
    ProjectedStudent,
    SmallLanguageModel,
    WindowStudent,
    student_of,
)
from regard.mixers.sequence.sea import SEAAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.heads import merge_heads

MAKERS = {
    "performer": PerformerStudent,
    "hashed": partial(HashedStudent, keys=4),
    "window": partial(WindowStudent, keys=4),
}


def keys_that_count(student: ProjectedStudent, x: torch.Tensor) -> torch.Tensor:
    """Which values have influence on which outputs, `(heads, queries, keys)`."""
    q, k, v = student.project(x)
    v = v.detach().requires_grad_()
    y = student.attend(q.detach(), k.detach(), v)
    rows = [torch.autograd.grad(y[0, :, i].sum(), v, retain_graph=True)[0][0] for i in range(x.shape[1])]
    return (torch.stack(rows, dim=1) != 0).any(dim=-1)


@pytest.mark.parametrize("name", MAKERS)
def test_students_are_causal_and_keep_to_their_budget(name: str) -> None:
    student = MAKERS[name](SoftmaxAttention(24, num_heads=3, causal=True))
    seen = keys_that_count(student, torch.randn(1, 17, 24))
    assert not seen.triu(1).any()
    assert seen.diagonal(dim1=1, dim2=2).all()
    counts = seen.sum(dim=-1)
    assert counts[:, -1].max() <= (17 if name == "performer" else 4)
    if name == "window":
        assert counts.tolist() == [[min(i + 1, 4) for i in range(17)]] * 3


def test_what_sees_everything_is_the_teacher() -> None:
    teacher, x = SoftmaxAttention(24, num_heads=3, causal=True), torch.randn(2, 11, 24)
    torch.testing.assert_close(WindowStudent(teacher, keys=11)(x), teacher(x))


def test_performers_map_gives_its_output() -> None:
    student, x = PerformerStudent(SoftmaxAttention(24, num_heads=3, causal=True)).eval(), torch.randn(2, 11, 24)
    expected = student.o_proj(merge_heads(student.weights(x) @ student.project(x)[2]))
    torch.testing.assert_close(student(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sea", *MAKERS])
def test_lessons_have_the_outputs_of_the_stream_and_a_loss(name: str) -> None:
    teacher = SmallLanguageModel(dim=24, num_heads=3, num_layers=2, length=13)
    sea = partial(SEAAttention.from_softmax, keys_per_query=3, estimate_width=8, max_positions=13)
    student = student_of(teacher, {"sea": sea, **MAKERS}[name]).eval()
    tokens = torch.randint(256, (2, 13))
    with torch.no_grad():
        projected = [tuple(torch.randn(2, 3, 13, 8) for _ in range(3)) for _ in teacher.mixers]
        leaving, loss = student.lessons(tokens, projected)
        torch.testing.assert_close(leaving, student.stream(tokens)[1])
    assert loss > 0
    assert torch.equal(student.embed.weight, teacher.embed.weight)
