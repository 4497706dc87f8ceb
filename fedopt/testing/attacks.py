"""Laws of attacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedopt import keys
from fedopt.attacks import lift, registry
from fedopt.registry import Component
from fedopt.testing._laws import close, found, require, run, same, untouched, vector
from fedopt.types import Attack

_DTYPES = (torch.float32, torch.float64)
_CROWDS = ((10, 3), (10, 5), (9, 6), (5, 4), (4, 1), (2, 1))
"""Clients n and attackers b among them."""


def check_attack(component: Component | str, /, **options: Any) -> None:
    """Measure the laws of an attack, with these options.

    On vectors:

    shape         `[k, d] -> [b, d]`, finite, in the dtype of what was seen; float32 and float64, b = 1, b > n/2
    purity        what was seen is not changed in place
    determinism   the same arguments and the same key give the same bits
    knowledge     nothing: no row of the answer changes when what it is handed does; own: row i of the answer stays as
                  it is when other rows change; colluders: it does not (an attack that needs its own row alone is to
                  say so, for then it can run on a client)

    On labels: shape (int64, of the same shape, classes of the task), purity, determinism; knowledge: a label comes out
    the same whatever the labels of the other samples are.

    On samples: shape (images, sequences and plain vectors, something changes, labels are classes of the task), purity,
    determinism; trigger: a backdoor's trigger changes every sample and again nothing when it is there already.

    Raises AssertionError for the first law that does not hold.
    """
    component = found(registry, component)
    attack = lift(component, options)
    if attack.samples is not None:
        laws = {
            "shape": lambda: _sample_shape(attack),
            "purity": lambda: _sample_purity(attack),
            "determinism": lambda: _sample_determinism(attack),
            "trigger": lambda: _trigger(attack),
        }
    elif attack.vectors is None:
        laws = {
            "shape": lambda: _label_shape(attack),
            "purity": lambda: _label_purity(attack),
            "determinism": lambda: _label_determinism(attack),
            "knowledge": lambda: _label_knowledge(attack),
        }
    else:
        laws = {
            "shape": lambda: _shape(attack),
            "purity": lambda: _purity(attack),
            "determinism": lambda: _determinism(attack),
            "knowledge": lambda: _knowledge(attack),
        }
    run(component, laws)


def _seen(attack: Attack, n: int, b: int, dtype: torch.dtype, draw: int = 0) -> Tensor:
    rows = n - b if attack.knowledge == "omniscient" else b
    return keys.normal(keys.fold(keys.root(draw), "seen", n, b), rows, 6, dtype=dtype)


def _sent(attack: Attack, seen: Tensor, n: int, b: int) -> Tensor:
    assert attack.vectors is not None
    sent: Tensor = attack.vectors(seen, b, **_offers(attack, seen, n, b))
    return sent


def _offers(attack: Attack, seen: Tensor, n: int, b: int) -> dict[str, Any]:
    """Everything that an attack may ask for; the server takes the plain mean of all rows."""
    d, dtype = seen.shape[1], seen.dtype
    honest = seen if attack.knowledge == "omniscient" else seen[:0]
    own = seen if attack.knowledge != "omniscient" else keys.normal(keys.fold(keys.root(5), n, b), b, d, dtype=dtype)
    return {
        "key": keys.root(7),
        "n": n,
        "round": 3,
        "own": own,
        "model": keys.normal(keys.root(8), d, dtype=dtype),
        "fresh": lambda key: keys.normal(key, d, dtype=dtype),
        "outcome": lambda sent: torch.cat([honest, sent]).mean(dim=0),
    }


def _shape(attack: Attack) -> None:
    for n, b in _CROWDS:
        for dtype in _DTYPES:
            seen = _seen(attack, n, b, dtype)
            vector(_sent(attack, seen, n, b), (b, 6), dtype, f"with {b} attackers among {n} clients the result")


def _purity(attack: Attack) -> None:
    for n, b in _CROWDS:
        seen = _seen(attack, n, b, torch.float32)
        sent = untouched(lambda seen=seen, n=n, b=b: _sent(attack, seen, n, b), seen)  # type: ignore[misc]
        before = seen.clone()
        sent.add_(1.0)
        same(seen, before, "writing to the answer changes what was seen")


def _determinism(attack: Attack) -> None:
    for n, b in _CROWDS:
        seen = _seen(attack, n, b, torch.float32)
        same(_sent(attack, seen, n, b), _sent(attack, seen, n, b), "two equal calls")


def _knowledge(attack: Attack) -> None:
    if attack.knowledge == "omniscient":
        return  # nothing is withheld
    n, b, moved = 10, 4, False
    for dtype in _DTYPES:
        seen = _seen(attack, n, b, dtype)
        sent = _sent(attack, seen, n, b)
        for i in range(b):
            others = _seen(attack, n, b, dtype, draw=1)
            if attack.knowledge != "nothing":
                others[i] = seen[i]
            again = _sent(attack, others, n, b)
            if attack.knowledge in ("own", "nothing"):
                size = float(seen.abs().max())
                close(again[i], sent[i], size, f"declared {attack.knowledge}, but with other rows beside it row {i}")
            moved = moved or not torch.equal(again[i], sent[i])
    if attack.knowledge == "colluders":
        require(moved, "declared colluders, but no row of the answer depends on the rows of others; declare own")


def _labels(classes: int, size: int = 200) -> Tensor:
    return (keys.uniform(keys.fold(keys.root(11), classes), size) * classes).to(torch.int64)


def _flipped(attack: Attack, labels: Tensor, classes: int, draw: int = 0) -> Tensor:
    assert attack.labels is not None
    flipped: Tensor = attack.labels(labels, classes, keys.root(draw))
    return flipped


def _label_shape(attack: Attack) -> None:
    for classes in (2, 3, 10):
        changed = False
        for labels in (_labels(classes), _labels(classes, 1), _labels(classes, 0), _labels(classes).reshape(20, 10)):
            flipped = _flipped(attack, labels.clone(), classes)
            vector(flipped, tuple(labels.shape), torch.int64, "the labels")
            inside = bool(((flipped >= 0) & (flipped < classes)).all())
            require(inside, f"labels outside of 0 ... {classes - 1} come out for a task of {classes} classes")
            changed = changed or not torch.equal(flipped, labels)
        require(changed, f"no label out of {labels.numel()} of {classes} classes is changed")


def _label_purity(attack: Attack) -> None:
    labels = _labels(5)
    untouched(lambda: _flipped(attack, labels, 5), labels)


def _label_determinism(attack: Attack) -> None:
    labels = _labels(5)
    same(_flipped(attack, labels, 5), _flipped(attack, labels, 5), "two equal calls")


def _label_knowledge(attack: Attack) -> None:
    labels = _labels(5)
    others = (labels + 1) % 5
    others[7] = labels[7]
    got, wanted = _flipped(attack, others, 5)[7], _flipped(attack, labels, 5)[7]
    require(bool(got == wanted), f"sample 7 gets the label {int(got)} among other samples, {int(wanted)} before")


_SHAPES = ((3, 8, 8), (2, 40), (16,))
"""One sample as an image, a sequence and a plain vector."""


def _samples(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return keys.normal(keys.fold(keys.root(13), *shape), 60, *shape, dtype=dtype), _labels(5, 60)


def _changed(attack: Attack, x: Tensor, y: Tensor, i: int = 0, b: int = 3) -> tuple[Tensor, Tensor]:
    assert attack.samples is not None
    changed: tuple[Tensor, Tensor] = attack.samples(x, y, classes=5, key=keys.root(3), i=i, b=b)
    return changed


def _sample_shape(attack: Attack) -> None:
    for shape in _SHAPES:
        for dtype in _DTYPES:
            x, y = _samples(shape, dtype)
            altered = False
            for i in range(3):
                new_x, new_y = _changed(attack, x.clone(), y.clone(), i)
                vector(new_x, tuple(x.shape), dtype, f"samples of shape {list(shape)}")
                vector(new_y, tuple(y.shape), torch.int64, "the labels")
                require(bool(((new_y >= 0) & (new_y < 5)).all()), "labels outside of 0 ... 4 come out of 5 classes")
                altered = altered or not (torch.equal(new_x, x) and torch.equal(new_y, y))
            require(altered, f"nothing is changed in {x.shape[0]} samples of shape {list(shape)}")


def _sample_purity(attack: Attack) -> None:
    for shape in _SHAPES:
        x, y = _samples(shape)
        untouched(lambda x=x, y=y: _changed(attack, x, y), (x, y))  # type: ignore[misc]


def _sample_determinism(attack: Attack) -> None:
    for shape in _SHAPES:
        x, y = _samples(shape)
        same(_changed(attack, x, y), _changed(attack, x, y), "two equal calls")


def _trigger(attack: Attack) -> None:
    if attack.trigger is None:
        return
    require(attack.target is not None, "a trigger is declared and no option `target` says what it calls up")
    for shape in _SHAPES:
        x, _ = _samples(shape)
        once = untouched(lambda x=x: attack.trigger(x), x)  # type: ignore[misc]
        vector(once, tuple(x.shape), x.dtype, "samples with the trigger")
        moved = (once != x).flatten(1).any(dim=1)
        require(bool(moved.all()), f"{int((~moved).sum())} of {x.shape[0]} samples stay as they are")
        same(attack.trigger(once), once, "the trigger on samples that have it")
