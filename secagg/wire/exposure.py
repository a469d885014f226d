"""What a layout exposes to the server, in words."""

from __future__ import annotations

from .layout import Layout


def exposure(layout: Layout) -> str | None:
    """Return what is sent in the clear, for a warning; None if nothing is.

    A dense layer that is the first to see pixels gives them back: the gradient of its weights is a product of two
    vectors, and one of them is the image (docs/leakage.md). Layers are told by names and shapes: the first tensor
    ``weight`` of two or more dimensions is dense if it has two, or an embedding, which shows what was looked up.
    """
    clear, sent = layout.role("clear"), layout.sent
    if not clear:
        return None
    values = sum(spec.size for spec in sent)
    told = (
        f"{len(clear)} of {len(sent)} float tensors, {layout.size('clear'):,} of {values:,} values, are sent in the "
        f"clear, {clear[0].name!r} first: the server reads them, and may make images out of them; what protects is "
        "encrypt: all, see docs/leakage.md"
    )
    weights = (spec for spec in sent for name in spec.names if name.rpartition(".")[2] == "weight")
    first = next((spec for spec in weights if len(spec.shape) >= 2), None)
    if first is not None and first.role == "clear" and len(first.shape) == 2:
        told += (
            f". One of them is the first layer, {first.name!r}: what it was given stands in its update, the pixels "
            "themselves if it is a dense one on images, the words if it is an embedding"
        )
    return told
