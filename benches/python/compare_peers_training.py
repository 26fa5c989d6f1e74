"""Steps of training in `compare_peers.py`: forward, backward and the update of the rows that were used."""

import torch
from compare_peers_fbgemm import Fbgemm, ignores_stochastic_rounding
from compare_peers_forward import FBGEMM, TORCH, Calls, tolerance
from compare_peers_measure import (
    OURS,
    Settings,
    add_memory,
    add_target,
    check_outputs,
    check_rows,
    compare,
    new_section,
)
from compare_peers_ours import How, Ours
from compare_peers_torch import Torch, new_tables
from compare_peers_workloads import ADAM_EPSILON, ADAM_LEARNING_RATE, Side, Work
from tiering_report import Section

CHECKED_STEPS = 3
FP32_LEAST, FP16_LEAST, STOCHASTIC_LEAST, TORCH_LEAST, ADAM_LEAST = 2.0, 3.0, 2.0, 10.0, 5.0


def _train_both(ours: Side, other: Side) -> None:
    for batch in range(CHECKED_STEPS):
        number = batch % ours.work.shape.batches
        ours.train(number)
        other.train(number)


def _check_adagrad(section: Section, ours: Ours, others: dict[str, Side], *, stochastic: bool) -> None:
    sides: dict[str, Side] = {OURS: ours, **others}
    check_outputs({name: (side, side.forward(0)) for name, side in sides.items()}, tolerance(ours.work))
    fbgemm = others.get(FBGEMM)
    if fbgemm is None:
        return
    _train_both(ours, fbgemm)
    # Rows of fp16 are below 2, where neighbours are 2^-10 apart. Each step a side that rounds to nearest is
    # off by half of that, and one that rounds by chance by all of it.
    roundings = CHECKED_STEPS * (1.5 if stochastic else 1.0)
    atol = roundings * 2.0**-10 if ours.work.shape.row_type == "fp16" else 1e-5
    largest = check_rows(ours, FBGEMM, fbgemm, rtol=1e-4, atol=atol)
    section.figures["checked"] = {"steps": CHECKED_STEPS, "largest_weight_difference": largest}
    section.notes.append(
        f"Checked first: after {CHECKED_STEPS} steps from equal weights those of tiermem and FBGEMM differ by"
        f" {largest:.2g} at most."
    )


def _notes_on_fp16(section: Section, *, stochastic: bool, with_fbgemm: bool) -> None:
    section.notes.append("torch is left out: it has no AdaGrad for rows of fp16 with state of fp32.")
    if stochastic and with_fbgemm:
        ignored = ignores_stochastic_rounding()
        section.figures["fbgemm_ignores_stochastic_rounding"] = ignored
        section.notes.append(
            "FBGEMM is asked for stochastic rounding, too, and its CPU kernels "
            + ("ignore that: its bits are those of rounding to nearest." if ignored else "obey.")
        )


def adagrad(work: Work, settings: Settings, *, stochastic: bool = False) -> Section:
    """Row-wise AdaGrad by module and by operators, for fp32 rows beside torch's AdaGrad."""
    shape = work.shape
    is_half = shape.row_type == "fp16"
    rounding = "stochastic" if stochastic else "nearest"
    suffix = f", rounding {rounding}" if is_half else ""
    section = new_section(
        f"{shape.name} row-wise AdaGrad{suffix}", f"{shape.title}: whole steps{suffix}", work, settings
    )
    how = How(threads=settings.threads, rounding=rounding)
    ours = Ours(work, how)
    others: dict[str, Side] = {}
    if settings.with_fbgemm:
        others[FBGEMM] = Fbgemm(work, stochastic=stochastic)
    if not is_half:
        others[TORCH] = Torch(work, new_tables(work), "adagrad")
    _check_adagrad(section, ours, others, stochastic=stochastic)
    sides: dict[str, Side] = {OURS: ours, **others}
    least, kind = work.training_bytes(1), "C: forward, backward and update, module"
    calls: Calls = {name: side.train for name, side in sides.items()}
    runs = compare(section, kind, calls, work, least, settings)
    bound = (STOCHASTIC_LEAST if stochastic else FP16_LEAST) if is_half else FP32_LEAST
    add_target(section, f"{kind}: FBGEMM over tiermem", runs, (FBGEMM,), bound)
    add_target(section, f"{kind}: torch, sparse, Adagrad over tiermem", runs, (TORCH,), TORCH_LEAST)
    fbgemm = others.get(FBGEMM)
    if isinstance(fbgemm, Fbgemm):
        calls = {OURS: ours.train_by_store, FBGEMM: fbgemm.train_by_operators}
        compare(section, "C: forward, backward and update, without autograd", calls, work, least, settings)
        section.notes.append(
            "Without autograd: tiermem's store (prefetch, wait, gather, update, release) and FBGEMM's forward"
            " and backward operators, which check no ids."
        )
    if is_half:
        _notes_on_fp16(section, stochastic=stochastic, with_fbgemm=settings.with_fbgemm)
    else:
        section.notes.append("torch's Adagrad keeps a sum for each weight: it is no row-wise AdaGrad.")
    add_memory(section, work, sides)
    for side in sides.values():
        side.close()
    return section


def _lamb_rows(work: Work, before: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(unique rows, their weights after the first step from no state) by the formula, in float64."""
    lookups, gradient = work.batches[batch], work.gradients[0].double()
    lengths = torch.diff(lookups.all_offsets)
    bag_of_id = torch.repeat_interleave(torch.arange(work.shape.bags), lengths)
    unique, inverse = torch.unique(lookups.ids[0], return_inverse=True)
    summed = torch.zeros(len(unique), gradient.shape[1], dtype=torch.float64)
    summed.index_add_(0, inverse, gradient[bag_of_id])
    weights = before[unique].double()
    # After one step both moments with their corrections are the gradient and its square.
    direction = summed / (summed.abs() + ADAM_EPSILON)
    ratio = weights.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True)
    return unique, weights - ADAM_LEARNING_RATE * ratio * direction


def _check_lamb(lamb: Ours) -> None:
    before = lamb.rows(0).clone()
    unique, expected = _lamb_rows(lamb.work, before, 0)
    lamb.train(0)
    after = lamb.rows(0)
    torch.testing.assert_close(after[unique].double(), expected, rtol=1e-4, atol=1e-6)
    before[unique] = after[unique]
    assert torch.equal(after, before), "LAMB touches no other rows"


def adam(work: Work, settings: Settings) -> Section:
    """Adam and LAMB, fused, beside torch's SparseAdam."""
    section = new_section(
        f"{work.shape.name} Adam and LAMB", f"{work.shape.title}: whole steps", work, settings
    )
    section.notes.append(
        "FBGEMM has no side: its module refuses Adam and LAMB on the CPU. torch has no LAMB for sparse"
        " gradients, so that its SparseAdam stands beside tiermem's LAMB."
    )
    least = work.training_bytes(-1)
    for optimizer, name in (("adam", "Adam"), ("lamb", "LAMB")):
        how = How(threads=settings.threads, optimizer=optimizer)
        ours = Ours(work, how)
        torch_side = Torch(work, new_tables(work), "sparse_adam")
        if optimizer == "adam":
            _train_both(ours, torch_side)
            largest = check_rows(ours, TORCH, torch_side, rtol=1e-3, atol=1e-5)
            section.figures["checked"] = {"steps": CHECKED_STEPS, "largest_weight_difference": largest}
        else:
            _check_lamb(ours)
        sides: dict[str, Side] = {OURS: ours, TORCH: torch_side}
        kind = f"D: forward, backward and {name}, module"
        calls: Calls = {OURS: ours.train, TORCH: torch_side.train}
        runs = compare(section, kind, calls, work, least, settings)
        what = f"{kind}: torch, sparse, SparseAdam over tiermem"
        add_target(section, what, runs, (TORCH,), ADAM_LEAST)
        if optimizer == "adam":
            add_memory(section, work, sides)
        for side in sides.values():
            side.close()
    return section
