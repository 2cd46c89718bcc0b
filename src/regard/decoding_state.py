"""What a mixer remembers while decoding: `State`, the decorator `state`, and `static` for its plain fields."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

from jaxtyping import Int
from torch import Tensor
from torch.utils import _pytree as pytree

StateClass = TypeVar("StateClass", bound="State")


def static() -> Any:
    """A field of a state that is plain data (an int, a bool), not a tensor."""
    return field(metadata={"static": True})


@dataclass(frozen=True)
class State:
    """What a mixer remembers while decoding: tensors with the batch on axis 0.

    Subclasses are decorated with `@state`. `step` consumes a state: without gradients it may write into the
    state's own memory, so branch with `clone()`.
    """

    position: Int[Tensor, " batch"]
    """Number of real tokens seen, per row."""

    def reorder(self: StateClass, index: Int[Tensor, " rows"]) -> StateClass:
        """The rows `index` of this state (beam search)."""
        return pytree.tree_map(lambda tensor: tensor.index_select(0, index), self)

    def detach(self: StateClass) -> StateClass:
        """The same state without its history of gradients."""
        return pytree.tree_map(lambda tensor: tensor.detach(), self)

    def clone(self: StateClass) -> StateClass:
        """A copy that shares no memory with this state."""
        return pytree.tree_map(lambda tensor: tensor.clone(), self)

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors."""
        return sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(self))


@dataclass_transform(frozen_default=True)
def state(cls: type[StateClass]) -> type[StateClass]:
    """Make a `State` subclass a frozen dataclass and register it as a pytree (needed by `torch.export`)."""
    cls = dataclass(frozen=True)(cls)
    plain = tuple(item.name for item in fields(cls) if item.metadata.get("static"))
    tensors = tuple(item.name for item in fields(cls) if item.name not in plain)

    def flatten(value: StateClass) -> tuple[list[Any], Any]:
        return [getattr(value, name) for name in tensors], tuple(getattr(value, name) for name in plain)

    def flatten_with_keys(value: StateClass) -> tuple[list[Any], Any]:
        children, context = flatten(value)
        return [(pytree.GetAttrKey(name), child) for name, child in zip(tensors, children, strict=True)], context

    def unflatten(children: Any, context: Any) -> StateClass:
        return cls(**dict(zip(tensors, children, strict=True)), **dict(zip(plain, context, strict=True)))

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )
    return cls
