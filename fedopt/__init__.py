"""fedopt: federated and distributed learning, simulated on one machine and deployed as it was simulated.

import fedopt
result = fedopt.run("configs/quickstart.toml", ["run.rounds=5"], out="runs/try")
result.history[-1]["accuracy"]; result.model
"""

from __future__ import annotations

from fedopt.execution import Result
from fedopt.experiment import Experiment, replay, resume_run, run
from fedopt.registry import ConfigError, declare
from fedopt.types import FedoptError

__all__ = ["ConfigError", "Experiment", "FedoptError", "Result", "declare", "replay", "resume_run", "run"]
