"""What goes wrong around Ray: dead workers, clients' errors, memory, processes and memory left behind."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("ray", reason="needs Ray: pip install 'fedopt[ray]'")

import ray

from fedopt import keys
from fedopt.engine.collect import GROUP
from fedopt.engine.ray import Ray
from fedopt.engine.serial import ClientError, Serial
from fedopt.engine.stacked import Stacked
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.testing.strategies import compose, play, small_federation, small_problem
from fedopt.types import Batches, Client, ClientProgram, Exchange, FedoptError, Programs, Replies, Uplink

SIZES = (7, 5, 9, 4, 6, 12, 3, 8, 5, 10)
KEY = keys.root(0)


@pytest.fixture(scope="module")
def executor() -> Iterator[Ray]:
    made = Ray(workers=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def problem() -> Problem:
    return small_problem(small_federation(SIZES))


def programs(finish: Callable[[Client, Any], Any], step: Callable[..., Any] | None = None) -> Programs:
    """A program that answers with the model times its number of samples, after `finish` had its way.

    Functions within functions are sent to workers as they are; those of this file are not, which workers cannot import.
    """

    def start(client: Client) -> dict[str, Tensor]:
        return {"seen": client.samples.to(torch.float64)}

    def nothing(client: Client, carry: Any, batch: Any) -> Any:
        return carry

    def end(client: Client, carry: Any) -> Uplink:
        finish(client, carry)
        delta = client.down["params"] * carry["seen"]
        return Uplink({"delta": delta}, {"loss": carry["seen"]}, {}, client.samples.to(torch.float64))

    return Programs({"train": ClientProgram(start, step or nothing, end)}, {})


def asked(problem: Problem, **changes: Any) -> Exchange:
    exchange = Exchange(
        "train", torch.arange(problem.clients), dict(problem.initial), batches=Batches(size=4), reduce="mean"
    )
    return exchange._replace(**changes)


def mapped(executor: Any, problem: Problem, programs: Programs, exchange: Exchange, inner: str = "serial") -> Replies:
    executor.inner = inner
    replies: Replies = executor.map(problem, programs, exchange, {}, KEY)
    return replies


def same(got: Replies, wanted: Replies) -> None:
    assert torch.equal(got.clients, wanted.clients) and torch.equal(got.weights, wanted.weights)
    for one, other in ((got.vectors, wanted.vectors), (got.metrics, wanted.metrics), (got.memory, wanted.memory)):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def no_op(client: Client, carry: Any) -> None:
    pass


def test_a_worker_that_is_killed_changes_nothing(
    executor: Ray, problem: Problem, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, flag = os.getpid(), tmp_path / "killed"

    def kill_once(client: Client, carry: Any) -> None:
        if int(client.samples) == 12 and os.getpid() != here and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    work, before = programs(kill_once), executor.deaths
    with caplog.at_level(logging.WARNING, "fedopt"):
        got = mapped(executor, problem, work, asked(problem))
    assert flag.exists() and executor.deaths == before + 1 == executor.plan()["deaths"]
    same(got, mapped(Serial(), problem, work, asked(problem)))
    (told,) = caplog.messages
    assert "died" in told and "runs clients" in told and " 5" in told and "\n" not in told


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["serial", "stacked"])
def test_a_worker_that_is_killed_from_outside_changes_nothing(
    executor: Ray, problem: Problem, tmp_path: Path, inner: str
) -> None:
    """SIGKILL from another thread, once a worker has said that it is at work."""
    strategy, here, folder = compose("fedavg", lr=0.1, batches=Batches(size=4)), os.getpid(), tmp_path

    def slow(client: Client, carry: Any) -> None:
        if os.getpid() != here:
            (folder / str(os.getpid())).touch()
            time.sleep(0.05 if inner == "serial" else 1.0)

    def kill() -> None:
        while not list(folder.iterdir()):
            time.sleep(0.01)
        os.kill(int(next(folder.iterdir()).name), signal.SIGKILL)

    work, before = programs(slow), executor.deaths
    mapped(executor, problem, programs(no_op), asked(problem), inner)  # the pool stands
    killer = threading.Thread(target=kill)
    killer.start()
    got = mapped(executor, problem, work, asked(problem), inner)
    killer.join()
    assert executor.deaths == before + 1
    same(got, mapped(executor, problem, programs(no_op), asked(problem), inner))
    executor.inner = "serial"
    same_run = [play(problem, strategy, 2, executor=e).params for e in (executor, Serial())]
    assert torch.equal(*same_run)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_client_that_always_kills_its_worker_ends_the_run_with_its_name(executor: Ray, problem: Problem) -> None:
    here = os.getpid()

    def kill(client: Client, carry: Any) -> None:
        if int(client.samples) == 12 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(FedoptError, match=r"3 workers died at clients 5 \(.*executor.memory_mb or executor.workers"):
        mapped(executor, problem, programs(kill), asked(problem))
    same(
        mapped(executor, problem, programs(no_op), asked(problem)),
        mapped(Serial(), problem, programs(no_op), asked(problem)),
    )


@pytest.mark.parametrize("inner", ["serial", "stacked"])
def test_a_clients_error_is_that_of_the_serial_executor(executor: Ray, problem: Problem, inner: str) -> None:
    """The first of several, with its name, stage and message; its traceback is at hand; nothing is refused for it."""

    def wrong(client: Client, carry: Any, batch: Any) -> Any:
        if int(client.samples) in (9, 8, 10):
            time.sleep(0.05 if int(client.samples) == 9 else 0.0)
            raise ZeroDivisionError(f"{int(client.samples)} samples")
        return carry

    work = programs(no_op, wrong)
    with pytest.raises(ClientError) as told:
        mapped(Serial(), problem, work, asked(problem))
    executor.refused = {}
    for _ in range(2):  # the second time with known costs, so in other calls
        with pytest.raises(ClientError) as found:
            mapped(executor, problem, work, asked(problem), inner)
        one, other = found.value, told.value
        assert str(one) == str(other) and "client 2 (client 2) failed" in str(one)
        assert (
            (one.client, one.program, one.stage) == (other.client, other.program, other.stage) == (2, "train", "step 0")
        )
        assert type(one.__cause__).__name__ == "ZeroDivisionError"
        assert any("in wrong" in note for note in one.__notes__)
    assert executor.refused == {}


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (FedoptError("take another rule"), "take another rule"),
        (ConfigError("model.name", "no such thing"), "model.name: no such thing"),
    ],
)
def test_what_the_user_can_mend_comes_through(executor: Ray, problem: Problem, error: FedoptError, wanted: str) -> None:
    def raises(client: Client, carry: Any) -> None:
        if wanted.startswith("model"):
            raise ConfigError("model.name", "no such thing")
        raise FedoptError(wanted)

    with pytest.raises(type(error)) as found:
        mapped(executor, problem, programs(raises), asked(problem))
    assert str(found.value) == wanted
    assert getattr(found.value, "where", None) == getattr(error, "where", None)


def test_what_does_not_stack_runs_serially(executor: Ray, problem: Problem, caplog: pytest.LogCaptureFixture) -> None:
    def branches(client: Client, carry: Any) -> None:
        if float(client.samples) > 1e6:
            raise ValueError

    executor.refused = {}
    work = programs(branches)
    with caplog.at_level(logging.WARNING, "fedopt"):
        got = mapped(executor, problem, work, asked(problem), "stacked")
        again = mapped(executor, problem, work, asked(problem), "stacked")
    wanted = mapped(Serial(), problem, work, asked(problem))
    same(got, wanted)
    same(again, wanted)
    (reason,) = executor.plan()["refused"].values()
    assert len(caplog.messages) == 1 and reason in caplog.messages[0]
    executor.refused = {}


def test_a_plan_is_taken_over(executor: Ray, problem: Problem) -> None:
    strategy = compose("fedavg", lr=0.1, batches=Batches(size=4))
    executor.inner, executor.width = "stacked", {}
    first = play(problem, strategy, 2, executor=executor)
    plan = executor.plan()
    assert plan["workers"] == 2 and plan["inner"] == "stacked"
    assert plan["width"] == _widths(problem, strategy)
    executor.restore({"workers": 3, "width": {"train": 1}})
    assert executor.plan()["workers"] == 3 and executor.plan()["width"]["train"] == 1
    other = play(problem, strategy, 2, executor=executor)
    executor.restore(plan)
    again = play(problem, strategy, 2, executor=executor)
    assert first.params is not None and again.params is not None and other.params is not None
    assert torch.equal(first.params, again.params)
    torch.testing.assert_close(first.params, other.params, rtol=1e-9, atol=1e-12)


def _widths(problem: Problem, strategy: Any) -> dict[str, int]:
    executor = Stacked()
    play(problem, strategy, 1, executor=executor)
    return executor.width


def test_many_problems_and_programs_come_and_go(executor: Ray) -> None:
    """Workers hold the last few; an earlier one is sent again."""
    made = [small_problem(small_federation((3 + i, 4, 5))) for i in range(6)]
    for number in (0, 1, 2, 3, 4, 5, 0, 5, 1):
        work = programs(no_op)
        same(
            mapped(executor, made[number], work, asked(made[number])),
            mapped(Serial(), made[number], work, asked(made[number])),
        )
    assert len(executor._sent) <= 8


def test_an_exchange_with_nobody(executor: Ray, problem: Problem) -> None:
    nobody = asked(problem, clients=torch.zeros(0, dtype=torch.int64))
    assert mapped(executor, problem, programs(no_op), nobody).clients.numel() == 0


def test_what_cannot_be_sent_is_told(executor: Ray, problem: Problem) -> None:
    lock = threading.Lock()

    def holds(client: Client, carry: Any) -> None:
        lock.locked()

    with pytest.raises(FedoptError, match=r"cannot be sent to Ray's workers: TypeError: .*executor.name = 'stacked'"):
        mapped(executor, problem, programs(holds), asked(problem))


def test_large_models_travel_once(executor: Ray, problem: Problem) -> None:
    """1.6 MB of down and of each sum: read in place at the workers, counted once in all."""
    down = {"params": torch.randn(200_000, dtype=torch.float64)}
    work = programs(no_op)
    for inner in ("serial", "stacked"):
        got = mapped(executor, problem, work, asked(problem, down=down), inner)
        wanted = mapped(Serial(), problem, work, asked(problem, down=down))
        torch.testing.assert_close(got.vectors, wanted.vectors, rtol=1e-12, atol=0)
        # Lanes that one worker happened to run in a row come home as one sum for each full group of them.
        least, most = (len(SIZES) // GROUP + len(SIZES) % GROUP, len(SIZES)) if inner == "serial" else (2, 2)
        assert (1 + least) * 1_600_000 < executor.serialised < (1.1 + most) * 1_600_000
    small = asked(problem, down={"params": torch.ones(3, dtype=torch.bfloat16)})
    same(mapped(executor, problem, work, small), mapped(Serial(), problem, work, small))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 999}, r"executor.workers: 999 were asked for, Ray has room for \d+"),
        ({"workers": 1, "gpus_per_worker": 0.5}, r"executor.workers: 1 were asked for, Ray has room for 0"),
        ({"workers": 1, "worker_memory_mb": 1e9}, r"executor.workers: 1 were asked for, Ray has room for 0"),
    ],
)
def test_no_room(executor: Ray, problem: Problem, given: dict[str, Any], message: str) -> None:
    mapped(executor, problem, programs(no_op), asked(problem))  # Ray is there
    other = Ray(**given)
    with pytest.raises(ConfigError, match=message):
        mapped(other, problem, programs(no_op), asked(problem))
    other.close()
    assert ray.is_initialized(), "what the other has not started is not his to end"


def below(pid: int) -> set[int]:
    """All processes that this one has started, and those that they have started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":  # ended, if not yet buried
                parents[int(entry.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def resident(pids: set[int]) -> dict[int, float]:
    """MB of each process that it shares with nobody."""
    found = {}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        private = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
        found[pid] = sum(private) / 1024
    return found


@pytest.mark.slow
def test_memory_and_processes_stay_as_they_are(executor: Ray) -> None:
    """Slope of the private memory of all processes over exchanges, and their number."""
    problem = small_problem(small_federation([5] * 50, dtype=torch.float32))
    exchange = asked(problem, down={"params": torch.randn(4810)})
    for inner in ("stacked", "serial"):
        executor.width = {}
        for _ in range(100):
            mapped(executor, problem, programs(no_op), exchange, inner)
        family = below(os.getpid()) | {os.getpid()}
        before = sum(resident(family).values())
        for _ in range(150):
            mapped(executor, problem, programs(no_op), exchange, inner)
        after = resident(below(os.getpid()) | {os.getpid()})
        assert after.keys() == family
        assert sum(after.values()) - before < 150 * 0.05, f"{inner}: {before:.1f} MB, then {sum(after.values()):.1f}"


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_micro_cohort(
    executor: Ray, problem: Problem, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers that may allocate 250 MB more, 40 clients with 8 MB each."""
    executor.close()
    many = small_problem(small_federation([4] * 80))

    def start(client: Client) -> dict[str, Tensor]:
        return {"big": client.down["params"][0] + torch.zeros(1_000_000, dtype=torch.float64) + client.samples}

    def step(client: Client, carry: Any, batch: Any) -> Any:
        return {"big": carry["big"] + batch["mask"].sum()}

    def finish(client: Client, carry: Any) -> Uplink:
        return Uplink({"delta": carry["big"][:5]}, {}, {}, client.samples.to(torch.float64))

    work = Programs({"train": ClientProgram(start, step, finish)}, {})
    capped = Ray(workers=2, worker_memory_mb=250.0)
    try:
        with caplog.at_level(logging.WARNING, "fedopt"):
            got = mapped(capped, many, work, asked(many), "stacked")
        wanted = mapped(Stacked(), many, work, asked(many))
        torch.testing.assert_close(got.vectors, wanted.vectors)
        width = capped.plan()["width"]["train"]
        assert 1 <= width <= 20 and capped.refused == {} and capped.deaths == 0
        assert (
            caplog.messages[-1] == f"memory ran out in program 'train' with {2 * width} clients at a time; now {width}"
        )
        with pytest.raises(FedoptError, match=r"does not fit the memory of a worker for one client alone"):
            mapped(capped, many, _hungry(), asked(many), "stacked")
    finally:
        capped.close()


def _hungry() -> Programs:
    def start(client: Client) -> dict[str, Tensor]:
        return {"big": client.samples + torch.zeros(100_000_000, dtype=torch.float64)}

    def step(client: Client, carry: Any, batch: Any) -> Any:
        return carry

    def finish(client: Client, carry: Any) -> Uplink:
        return Uplink({"delta": carry["big"][:5]}, {}, {}, client.samples.to(torch.float64))

    return Programs({"train": ClientProgram(start, step, finish)}, {})


@pytest.mark.slow
def test_nothing_stays_after_the_end(executor: Ray, problem: Problem) -> None:
    """Processes are gone, signal handlers are the caller's, a second start works, an end may be told twice."""
    executor.close()
    assert not ray.is_initialized()
    before, handler = below(os.getpid()), signal.getsignal(signal.SIGTERM)
    got = mapped(executor, problem, programs(no_op), asked(problem))
    same(got, mapped(Serial(), problem, programs(no_op), asked(problem)))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert below(os.getpid()) - before
    executor.close()
    executor.close()
    assert not ray.is_initialized()
    for _ in range(100):
        if not below(os.getpid()) - before:
            break
        time.sleep(0.1)
    assert not below(os.getpid()) - before


def test_a_cluster_that_is_not_there(executor: Ray, problem: Problem) -> None:
    executor.close()
    elsewhere, began = Ray(address="127.0.0.1:1"), time.monotonic()
    with pytest.raises(ConfigError, match=r"executor.address: no Ray cluster at '127.0.0.1:1'"):
        mapped(elsewhere, problem, programs(no_op), asked(problem))
    assert time.monotonic() - began < 30.0


@pytest.mark.slow
def test_two_pools_are_there_at_once() -> None:
    """As when executors are compared: the second one is not kept waiting for the first one's place."""
    problem = small_problem(small_federation(SIZES))
    work, exchange = programs(lambda client, carry: None), asked(problem)
    one, other = Ray("serial", workers=2), Ray("serial", workers=2)
    try:
        first = mapped(one, problem, work, exchange)
        second = mapped(other, problem, work, exchange)
        assert torch.equal(first.vectors["delta"], second.vectors["delta"])
    finally:
        other.close()
        one.close()
