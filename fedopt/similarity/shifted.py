"""Epochs within which all clients send a compressed difference of gradients."""

from __future__ import annotations

from torch import Tensor

from fedopt.registry import ConfigError
from fedopt.similarity.asking import Answer, Question, Setting
from fedopt.similarity.epochs import Epoch, Estimator
from fedopt.similarity.sampled import shift
from fedopt.types import Codec


def compressed(setting: Setting, p: float, theta: float, coupling: float, *, closing: str) -> Estimator:
    """e = mean_m C(∇f_m(x) - ∇f_1(x) - ∇f_m(w) + ∇f_1(w)), as it arrives."""

    def ask(x: Tensor, w: Tensor, at_w: Tensor, key: Tensor) -> Question:
        return Question("f", x, "difference", down={"shift": shift(setting, x, w)})

    def estimate(asked: Question, own: Epoch, answer: Answer) -> Tensor:
        return answer.vector

    return Estimator(p, theta, ask, estimate, program="anchor", closing=closing, coupling=coupling)


def promised(codec: Codec | None, setting: Setting) -> float:
    """The codec's largest relative error. Raises ConfigError where it promises none."""
    if codec is None or codec.kind == "exact":
        return 0.0
    error = codec.error(setting.problem.d)
    if error is None:
        raise ConfigError("strategy", f"'{codec.name}' promises no error, by which steps would go; give omega or beta")
    return error
