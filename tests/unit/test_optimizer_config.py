"""Optimizers as configuration: what is refused, what the extension reads, how much state a row has."""

from typing import Any, get_args

import pytest
import tiermem as tm
from tiermem import config
from tiermem.config import Experiment
from tiermem.errors import ConfigError

CLASSES: list[Any] = [tm.SGD, tm.Adagrad, tm.RowWiseAdagrad, tm.Adam, tm.PartialRowWiseAdam, tm.LAMB]
WITH_EPS = CLASSES[1:]
WITH_BETAS = CLASSES[3:]


def _refused(make: Any, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(**values)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("optimizer", CLASSES)
@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf"), "fast"])
def test_a_wrong_learning_rate_is_named(optimizer: Any, lr: object) -> None:
    message = _refused(optimizer, lr=lr)
    assert message.startswith("lr: input should be")
    assert f"(got {lr!r})" in message
    assert _refused(optimizer) == 'missing key "lr"'


@pytest.mark.parametrize("optimizer", CLASSES)
@pytest.mark.parametrize("decay", [-1e-9, float("inf")])
def test_a_wrong_weight_decay_is_named(optimizer: Any, decay: float) -> None:
    message = _refused(optimizer, lr=0.1, weight_decay=decay)
    assert message.startswith("weight_decay: ")
    assert f"(got {decay!r})" in message


@pytest.mark.parametrize("optimizer", WITH_EPS)
@pytest.mark.parametrize("eps", [0.0, -1e-8, float("nan")])
def test_a_wrong_eps_is_named(optimizer: Any, eps: float) -> None:
    message = _refused(optimizer, lr=0.1, eps=eps)
    assert message.startswith("eps: ")
    assert f"(got {eps!r})" in message


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5, float("nan")])
def test_a_wrong_momentum_is_named(momentum: float) -> None:
    message = _refused(tm.SGD, lr=0.1, momentum=momentum)
    assert message.startswith("momentum: ")
    assert f"(got {momentum!r})" in message


@pytest.mark.parametrize("optimizer", WITH_BETAS)
@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ((1.0, 0.999), "betas.0: input should be less than 1 (got 1.0)"),
        ((0.9, -0.1), "betas.1: input should be greater than or equal to 0 (got -0.1)"),
        ((0.9,), "betas.1"),
        (0.9, "betas: input should be a valid tuple (got 0.9)"),
    ],
)
def test_wrong_betas_are_named(optimizer: Any, betas: object, message: str) -> None:
    assert message in _refused(optimizer, lr=0.1, betas=betas)


def test_a_key_of_another_optimizer_is_unknown() -> None:
    assert 'unknown key "betas"' in _refused(tm.Adagrad, lr=0.1, betas=(0.9, 0.999))
    assert 'unknown key "momentum"' in _refused(tm.Adam, lr=0.1, momentum=0.9)
    assert 'unknown key "eps"' in _refused(tm.SGD, lr=0.1, eps=1e-8)
    assert 'did you mean "momentum"?' in _refused(tm.SGD, lr=0.1, momentun=0.9)


@pytest.mark.parametrize(
    ("optimizer", "core"),
    [
        (tm.SGD(lr=0.1), {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}),
        (
            tm.SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
            {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        ),
        (tm.Adagrad(lr=0.1), {"name": "adagrad", "eps": 1e-10, "weight_decay": 0.0}),
        (
            tm.RowWiseAdagrad(lr=0.1, weight_decay=0.5),
            {"name": "rowwise_adagrad", "eps": 1e-8, "weight_decay": 0.5},
        ),
        (
            tm.Adam(lr=0.1),
            {"name": "adam", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        ),
        (
            tm.PartialRowWiseAdam(lr=0.1, betas=(0.0, 0.5)),
            {"name": "partial_rowwise_adam", "beta1": 0.0, "beta2": 0.5, "eps": 1e-8, "weight_decay": 0.0},
        ),
        (
            tm.LAMB(lr=0.1, weight_decay=0.01),
            {"name": "lamb", "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01},
        ),
    ],
)
def test_the_extension_reads_all_but_the_learning_rate(optimizer: Any, core: dict[str, Any]) -> None:
    assert optimizer.core() == core


@pytest.mark.parametrize("dim", [1, 7, 64])
def test_floats_of_state_per_row(dim: int) -> None:
    assert tm.SGD(lr=0.1).state_floats(dim) == 0
    assert tm.SGD(lr=0.1, momentum=0.5).state_floats(dim) == dim
    assert tm.Adagrad(lr=0.1).state_floats(dim) == dim
    assert tm.RowWiseAdagrad(lr=0.1).state_floats(dim) == 1
    assert tm.Adam(lr=0.1).state_floats(dim) == 2 * dim
    assert tm.PartialRowWiseAdam(lr=0.1).state_floats(dim) == dim + 1
    assert tm.LAMB(lr=0.1).state_floats(dim) == 2 * dim


@pytest.mark.parametrize("optimizer", CLASSES)
def test_an_experiment_chooses_by_name_and_survives_a_round_trip(optimizer: Any) -> None:
    name = optimizer.model_fields["name"].default
    experiment = Experiment.load("demo-tiering", [f'train.optimizer={{name = "{name}", lr = 0.25}}'])
    assert experiment.train.optimizer == optimizer(lr=0.25)
    assert Experiment.from_mapping(experiment.model_dump()) == experiment


def test_an_experiment_names_what_is_wrong_with_its_optimizer() -> None:
    wrong = 'train.optimizer={name = "adam", lr = 0.25, betas = [0.9, 1.0]}'
    message = _refused(lambda: Experiment.load("demo-tiering", [wrong]))
    assert "train.optimizer.betas.1: input should be less than 1 (got 1.0)" in message
    unknown = _refused(lambda: Experiment.load("demo-tiering", ["train.optimizer.name=adamm"]))
    assert "train.optimizer" in unknown
    assert "'partial_rowwise_adam'" in unknown


def test_an_optimizer_is_frozen_and_a_changed_copy_is_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        tm.Adam(lr=0.1).lr = 0.2
    assert tm.Adam(lr=0.1).replace(lr=0.2) == tm.Adam(lr=0.2)
    with pytest.raises(ConfigError, match=r"lr: .*got -1"):
        tm.Adam(lr=0.1).replace(lr=-1.0)


def test_all_are_exported() -> None:
    members = get_args(get_args(config.OptimizerConfig)[0])
    assert set(members) == set(CLASSES)
    for optimizer in CLASSES:
        name = optimizer.__name__
        assert name in config.__all__
        assert name in tm.__all__
        assert getattr(config, name) is getattr(tm, name) is optimizer
    assert get_args(config.RowType) == ("fp32", "fp16", "bf16", "int8")
    assert get_args(config.Rounding) == ("stochastic", "nearest")
