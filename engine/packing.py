"""Training on packed prefix trees: what several sequences begin with is computed once, and trees lie side by side in a row.

A prompt with K responses becomes a tree of segments; a token attends to its own segment up to itself and to the segments above
it, nothing else, and its position is its depth. Every state is then what it would be in a sequence of its own. Segments lie in
the order of a walk down the tree, so that all that continues a token follows it at once: the place where that ends is all
that a mask has to know of the token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from engine import pruned
from engine.batches import Ids, Padded, branch_products, collate

ATTENTION_WEIGHT = 1.25  # a product inside attention costs this many of those in matrices (CPU, measured: 1.2)
CALL = 1e6  # products that a call of attention costs beside its own (CPU, measured at a width of 64)
WIDTHS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # row widths that are tried, in sizes of the largest tree


@dataclass(frozen=True)
class Segment:
    """A run of tokens that some sequences share. `above` is the segment it continues, -1 at the root."""

    ids: np.ndarray
    above: int
    depth: int  # position of its first token


@dataclass(frozen=True)
class Tree:
    """Sequences that share their prompt. `paths[k]` are the segments of sequence k from the root down."""

    segments: tuple[Segment, ...]
    paths: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]  # of the sequences in the caller's list

    @cached_property
    def size(self) -> int:
        """Tokens to be computed."""
        return sum(len(s.ids) for s in self.segments)

    @cached_property
    def branches(self) -> tuple[int, list[int]]:
        """Tokens that all sequences begin with, and of each branch after them."""
        sizes = [len(s.ids) for s in self.segments]
        below: list[list[int]] = [[] for _ in sizes]
        for number in reversed(range(1, len(sizes))):  # what continues a segment comes after it
            sizes[self.segments[number].above] += sizes[number]
            below[self.segments[number].above].insert(0, number)
        node = 0
        while len(below[node]) == 1:
            node = below[node][0]
        lengths = [sizes[number] for number in below[node]]
        return self.size - sum(lengths), lengths

    @cached_property
    def products(self) -> tuple[float, int]:
        """Products of tokens with each other in its attention, and the calls of attention, where it is attended to apart."""
        found = branch_products(*self.branches)
        return (float(self.size**2), 1) if found is None else (found, 2)


@dataclass(frozen=True)
class Shape:
    """What a layer costs: products a token in its matrices, products a token and key in its attention."""

    matrices: float
    attention: float
    apart: bool = False  # the model can attend to trees one by one (engine/apart.py)


def shape_of(model: Any) -> Shape | None:
    """The shape of a Hugging Face model, from its config and its body's size; None if it must not be packed."""
    config = model.config
    kinds = getattr(config, "layer_types", None)
    if "sliding_attention" in (kinds or ()) or (kinds is None and getattr(config, "sliding_window", None)):
        return None  # such a layer makes its own mask from places in the row
    layers = max(1, int(getattr(config, "num_hidden_layers", 1)))
    body = getattr(model, model.base_model_prefix)
    spared = {id(m.weight) for m in body.modules() if isinstance(m, torch.nn.Embedding)}
    size = sum(p.numel() for p in body.parameters() if p.ndim >= 2 and id(p) not in spared)
    apart = (
        pruned.known(body) and config._attn_implementation == "sdpa" and next(model.parameters()).device.type == "cpu"
    )
    return Shape(size / layers, 2.0 * int(config.hidden_size) * ATTENTION_WEIGHT, apart)


def shape_for(models: Sequence[Any]) -> Shape | None:
    """The shape by which to lay out what all of these will read: that of the first, with what each of them allows."""
    shapes = [shape_of(model) for model in models]
    if shapes[0] is None or None in shapes:
        return None
    return replace(shapes[0], apart=all(shape is not None and shape.apart for shape in shapes))


def arrange(
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    pad_id: int,
    shape: Shape | None,
    learned: Sequence[Sequence[bool] | None] | None = None,
) -> Padded:
    """(prompt, response) pairs as a batch: padded, packed, or trees apart in one row, whichever costs the model less.

    The choice depends on the lengths and the model's shape only, so that a rerun makes the same one. Without a shape: padded.
    """
    if shape is None:
        return collate(pairs, pad_id=pad_id, learned=learned)
    trees = grow(pairs)
    lengths = [len(p) + len(r) for p, r in pairs]
    width = max(lengths)
    padded = len(pairs) * width * (shape.matrices + shape.attention * width)
    cost, rows = min(((_cost(trees, rows, shape), rows) for rows in _layouts(trees)), key=lambda found: found[0])
    apart = shape.apart and _cost_apart(trees, shape) < min(padded, cost)
    if padded <= cost and not apart:
        return collate(pairs, pad_id=pad_id, learned=learned)
    return pack(pairs, trees, [range(len(trees))] if apart else rows, pad_id, learned, apart=apart)


def _cost(trees: Sequence[Tree], rows: Sequence[Sequence[int]], shape: Shape) -> float:
    width = _width(trees, rows)
    return len(rows) * width * (shape.matrices + shape.attention * width)


def _cost_apart(trees: Sequence[Tree], shape: Shape) -> float:
    cost = sum(tree.size * shape.matrices for tree in trees)
    for products, calls in (tree.products for tree in trees):
        cost += shape.attention * products + CALL * calls
    return cost


def grow(pairs: Sequence[tuple[Ids, Ids]]) -> list[Tree]:
    """One tree for each distinct prompt, in the order of first appearance."""
    members: dict[bytes, list[int]] = {}
    for place, (prompt, _) in enumerate(pairs):
        members.setdefault(np.asarray(prompt, dtype=np.int32).tobytes(), []).append(place)
    return [_tree(pairs, places) for places in members.values()]


def _tree(pairs: Sequence[tuple[Ids, Ids]], places: Sequence[int]) -> Tree:
    """A radix tree of one prompt's responses; the last prompt token stays with the prompt, whose state predicts them all."""
    responses = [np.asarray(pairs[place][1], dtype=np.int32) for place in places]
    order = sorted(range(len(places)), key=lambda k: responses[k].tolist())
    prompt = np.asarray(pairs[places[0]][0], dtype=np.int32)
    segments = [Segment(prompt, -1, 0)]
    paths: dict[int, tuple[int, ...]] = {}
    _branch(segments, paths, responses, order, (0,), 0, len(prompt))
    return Tree(tuple(segments), tuple(paths[k] for k in range(len(places))), tuple(places))


def _branch(
    segments: list[Segment],
    paths: dict[int, tuple[int, ...]],
    responses: Sequence[np.ndarray],
    order: Sequence[int],
    path: tuple[int, ...],
    done: int,
    depth: int,
) -> None:
    """Add the segments below `path` for sorted responses that agree in their first `done` tokens."""
    for k in order:
        if len(responses[k]) == done:
            paths[k] = path
    rest = [k for k in order if len(responses[k]) > done]
    while rest:
        first = responses[rest[0]][done]
        same = [k for k in rest if responses[k][done] == first]
        rest = rest[len(same) :]
        shared = _common(responses[same[0]], responses[same[-1]])  # sorted: the outermost two differ first
        segments.append(Segment(responses[same[0]][done:shared], path[-1], depth))
        _branch(segments, paths, responses, same, (*path, len(segments) - 1), shared, depth + shared - done)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differs = np.flatnonzero(a[:size] != b[:size])
    return int(differs[0]) if len(differs) else size


def _layouts(trees: Sequence[Tree]) -> list[list[list[int]]]:
    """Ways to lay trees into rows (tree indices by row): first fit in falling size, for several widths."""
    order = sorted(range(len(trees)), key=lambda i: (-trees[i].size, i))
    found = []
    for factor in WIDTHS:
        width = int(trees[order[0]].size * factor)
        rows: list[list[int]] = []
        room: list[int] = []
        for i in order:
            size = trees[i].size
            row = next((r for r, left in enumerate(room) if left >= size), len(rows))
            if row == len(rows):
                rows.append([])
                room.append(width)
            rows[row].append(i)
            room[row] -= size
        found.append(rows)
        if len(rows) == 1:
            break
    return found


def _width(trees: Sequence[Tree], rows: Sequence[Sequence[int]]) -> int:
    return max(sum(trees[i].size for i in row) for row in rows)


def pack(
    pairs: Sequence[tuple[Ids, Ids]],
    trees: Sequence[Tree],
    rows: Sequence[Sequence[int]],
    pad_id: int,
    learned: Sequence[Sequence[bool] | None] | None = None,
    *,
    apart: bool = False,
) -> Padded:
    """Trees laid into rows as a batch with mask and positions.

    rows: indices into `trees` for each row, every tree once.
    apart: there is one row, and its trees are attended to one by one.
    """
    width, count = _width(trees, rows), len(pairs)
    depth = max(len(response) for _, response in pairs)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    ends = np.arange(1, width + 1) + np.zeros(
        (len(rows), 1), dtype=np.int64
    )  # padding sees itself: nothing would be NaN
    source, target = np.zeros((2, count, depth), dtype=np.int64)
    counts = np.zeros((count, depth), dtype=bool)
    last, lengths = np.zeros((2, count), dtype=np.int64)
    for r, row in enumerate(rows):
        first = 0
        for tree in (trees[i] for i in row):
            where = _place(tree, ids[r], positions[r], ends[r], first)
            for path, k in zip(tree.paths, tree.places):
                tokens = np.concatenate([where[s] for s in path]) + r * width
                prompt, size = len(where[0]), len(pairs[k][1])
                source[k, :size] = tokens[prompt - 1 : -1]
                target[k, :size] = pairs[k][1]
                marks = None if learned is None else learned[k]
                counts[k, :size] = True if marks is None else marks
                last[k], lengths[k] = tokens[-1], len(tokens)
            first += tree.size
    found = [ids, lengths, source, target, counts, last, positions, ends]
    if apart:
        found.append(np.array([trees[i].size for i in rows[0]], dtype=np.int64))
    return Padded(*map(torch.from_numpy, found))


def _place(tree: Tree, ids: np.ndarray, positions: np.ndarray, ends: np.ndarray, first: int) -> list[np.ndarray]:
    """Write a tree's tokens, positions and ends from place `first` of a row; returns each segment's places."""
    where: list[np.ndarray] = []
    for segment in tree.segments:
        size = len(segment.ids)
        where.append(np.arange(first, first + size))
        ids[first : first + size] = segment.ids
        positions[first : first + size] = np.arange(segment.depth, segment.depth + size)
        first += size
    last = [int(places[-1]) + 1 for places in where]
    for number in reversed(range(1, len(where))):  # what continues a segment comes after it
        above = tree.segments[number].above
        last[above] = max(last[above], last[number])
    for places, end in zip(where, last):
        ends[places] = end
    return where
