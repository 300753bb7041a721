"""Scales of fold jobs: the constants by hand, invariances, noise that changes nothing, and the gain of combiners."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import f as f_distribution

from ensemble.stacking.job_scales import JobScale, JobScales, fit_job_scales
from ensemble.stacking.log_pool import fit_pool, pool_losses
from oof.classes import swap_orders
from tests.fixtures.arenas import Arena, make_arena

Floats = np.ndarray


def margins_and_ties(logits: Floats) -> tuple[Floats, Floats]:
    """Return the margins and the centred tie logits of the mean of both orders."""
    mean = logits.astype(np.float64).mean(axis=1)
    return mean[:, 0] - mean[:, 1], mean[:, 2] - mean.mean(axis=1)


def moved(logits: Floats, margin: float, tie: float, shift: float) -> Floats:
    """Return the logits with other margins and centred tie logits, rebuilt from these two."""
    z = logits.astype(np.float64)
    m, t = margin * (z[..., 0] - z[..., 1]), tie * (z[..., 2] - z.mean(axis=-1)) + shift
    return np.stack([(m - t) / 2, (-m - t) / 2, t], axis=-1) + z.mean(axis=-1, keepdims=True)


def random_logits(n: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 1, 3)) + 0.3 * rng.normal(size=(n, 2, 3)) + [0, 0, -0.4]).astype(np.float32)


CHANGES = ((1.5, 0.6, 0.4), (0.7, 1.2, -0.3), (1.1, 1.7, 0.2))  # margin factor, tie factor, tie shift of three jobs


def three_jobs(n: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Return (3 n, 2, 3) logits of jobs that differ by ``CHANGES``, and their folds."""
    parts = [moved(random_logits(n, 10 * seed + k), *change) for k, change in enumerate(CHANGES)]
    return np.concatenate(parts).astype(np.float32), np.repeat(np.arange(3), n)


def test_the_constants_are_those_of_the_formula() -> None:
    """Each row its own group: the errors are those of plain means of the influences."""
    n = 150
    logits, folds = three_jobs(n)
    values, variances = np.empty((3, 3)), np.empty((3, 3))
    for k in range(3):
        m, t = margins_and_ties(logits[folds == k])
        values[k] = np.log(np.sqrt((m**2).mean())), np.log(t.std()), t.mean()
        influence = (m**2 / (m**2).mean() - 1) / 2, ((t - t.mean()) ** 2 / t.var() - 1) / 2, t
        variances[k] = [x.var(ddof=1) / n for x in influence]
    differences = values - values.mean(axis=0)
    f = (differences**2).sum(axis=0) / 2 / variances.mean(axis=0)
    kept = np.maximum(0, 1 - f_distribution.ppf(0.95, 2, 3 * (n - 1)) / f)
    assert (kept > 0).all()
    scales = fit_job_scales({"m": logits}, folds, np.arange(3 * n)).members["m"]
    for k in range(3):
        margin, tie, mean = differences[k] * kept
        assert scales[k].margin == pytest.approx(np.exp(-margin))
        assert scales[k].tie == pytest.approx(np.exp(-tie))
        after = scales[k].tie * values[k, 2] + scales[k].shift  # the job's tie mean
        assert after == pytest.approx(values[k, 2] - mean)


def test_scaled_jobs_have_nearly_the_same_statistics() -> None:
    logits, folds = three_jobs(4000)
    scaled = fit_job_scales({"m": logits}, folds, np.arange(len(folds))).out_of_fold({"m": logits}, folds)["m"]
    before, after = (
        np.array([(np.sqrt((m**2).mean()), t.std(), t.mean()) for m, t in map(margins_and_ties, parts)])
        for parts in (np.split(logits, 3), np.split(scaled, 3))
    )
    assert (np.ptp(before, axis=0) > 0.5).all()
    assert (np.ptp(after, axis=0) < 0.01).all()


@settings(max_examples=25)
@given(
    st.lists(st.floats(0.8, 1.5), min_size=3, max_size=3),
    st.lists(st.floats(0.8, 1.5), min_size=3, max_size=3),
    st.lists(st.floats(0.5, 1.0), min_size=3, max_size=3),
)
def test_another_scale_and_shift_of_a_job_gives_the_same_scaled_logits(
    margins: list[float], ties: list[float], shifts: list[float]
) -> None:
    """Where the differences are far beyond noise, they are taken out, whatever they are."""
    sign = np.array([1, -1, 0])  # so that the average over the jobs stays
    log_margin, log_tie, shift = (np.array(values[:1]) * sign for values in (margins, ties, shifts))
    logits, folds = np.concatenate([random_logits(3000)] * 3), np.repeat(np.arange(3), 3000)
    other = logits.astype(np.float64)
    for k in range(3):
        t = margins_and_ties(logits[folds == k])[1].mean()
        factor = float(np.exp(log_tie[k]))
        change = float(np.exp(log_margin[k])), factor, float(shift[k]) + (1 - factor) * t
        other[folds == k] = moved(logits[folds == k], *change)
    scaled = fit_job_scales({"m": other}, folds, np.arange(len(folds))).out_of_fold({"m": other}, folds)["m"]
    error = np.sqrt(np.mean((scaled - logits) ** 2))
    assert error < 0.02
    assert error < 0.05 * np.sqrt(np.mean((other - logits) ** 2))


@pytest.mark.parametrize("battles_per_group", [1, 5])
def test_differences_within_noise_change_nothing(battles_per_group: int) -> None:
    """Jobs that are alike: a statistic moves in one case of twenty, also where the battles of a group are alike."""
    n, changed = 300, 0
    groups = np.arange(n) // battles_per_group
    for seed in range(60):
        of_group = np.exp(0.4 * np.random.default_rng(seed).normal(size=n // battles_per_group))
        logits = random_logits(n, seed) * of_group[groups, None, None]
        scales = fit_job_scales({"m": logits}, groups % 3, groups).members["m"][0]
        changed += (scales.margin != 1) + (scales.tie != 1) + (scales.tie == 1 and scales.shift != 0)
    assert changed <= 18  # of 180 the expected 9, and three standard deviations


def test_two_jobs_meet_halfway() -> None:
    logits, folds = three_jobs(2000)
    kept = folds < 2
    scales = fit_job_scales({"m": logits[kept]}, folds[kept], np.arange(4000)).members["m"]
    assert scales[0].margin < 0.75 < 1.3 < scales[1].margin
    assert scales[0].margin * scales[1].margin == pytest.approx(1)


def test_few_groups_carry_no_scale() -> None:
    logits, folds = three_jobs(100)
    in_five = np.arange(300) % 5 + 5 * folds
    assert set(fit_job_scales({"m": logits}, folds, in_five).members["m"].values()) == {JobScale()}
    one_in_five = np.where(folds == 1, in_five, 100 + np.arange(300))
    assert set(fit_job_scales({"m": logits}, folds, one_in_five).members["m"].values()) == {JobScale()}
    in_twenty = np.arange(300) % 20 + 20 * folds
    assert JobScale() not in fit_job_scales({"m": logits}, folds, in_twenty).members["m"].values()


@settings(max_examples=25)
@given(arrays(np.float32, (60, 2, 3), elements=st.floats(-5, 5, width=32)), st.floats(0.3, 3), st.floats(-2, 2))
def test_swapping_a_and_b_swaps_the_scaled_logits_exactly(logits: Floats, factor: float, shift: float) -> None:
    folds, groups = np.arange(60) % 3, np.arange(60)
    logits[folds == 1] = moved(logits[folds == 1], factor, 1 / factor, shift)
    scales, of_swapped = (fit_job_scales({"m": z}, folds, groups) for z in (logits, swap_orders(logits)))
    assert scales == of_swapped
    scaled = scales.out_of_fold({"m": logits}, folds)["m"]
    np.testing.assert_array_equal(scales.out_of_fold({"m": swap_orders(logits)}, folds)["m"], swap_orders(scaled))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("logits", "folds"),
    [
        (random_logits(30), np.zeros(30, dtype=int)),
        (random_logits(30), np.arange(30)),
        (np.zeros((30, 2, 3)), np.arange(30) % 2),
        (np.full((30, 2, 3), np.nan), np.arange(30) % 2),
        (np.full((30, 2, 3), np.inf), np.arange(30) % 2),
        (np.where(np.arange(30)[:, None, None] == 4, np.inf, random_logits(30)), np.arange(30) % 2),
        (np.float32([[[2, -1, 0]] * 2] * 30), np.arange(30) % 2),
    ],
    ids=["one job", "one battle a job", "zeros", "not a number", "infinite", "one infinite", "all alike"],
)
def test_degenerate_logits_stay_as_they_are(logits: Floats, folds: Floats) -> None:
    scales = fit_job_scales({"m": logits}, folds, np.arange(30))
    np.testing.assert_array_equal(scales.out_of_fold({"m": logits}, folds)["m"], logits)


def test_constant_ties_are_shifted_and_the_pinned_tie_of_two_classes_is_left_alone() -> None:
    logits, folds = three_jobs(400)
    groups, two = np.arange(1200), logits.copy()
    rounding = 1e-4 * (1 + folds) * np.random.default_rng(0).normal(size=1200)  # of another size in each job
    two[..., 2] = two[..., :2].mean(axis=-1) - 1000 + rounding[:, None]
    binary = fit_job_scales({"m": two}, folds, groups).members["m"]
    assert all(scale.margin != 1 and scale.tie == 1 and abs(scale.shift) < 1e-3 for scale in binary.values())
    per_job = np.array([0.1, 0.4, -0.5])[folds]
    constant = np.stack([logits[..., 0], -logits[..., 0], np.repeat(per_job[:, None], 2, axis=1)], axis=-1)
    scaled = fit_job_scales({"m": constant}, folds, groups).out_of_fold({"m": constant}, folds)["m"]
    np.testing.assert_allclose(margins_and_ties(scaled)[1], 0.0, atol=1e-6)


def test_logits_of_new_battles_are_scaled_by_job_before_their_mean() -> None:
    logits, folds = three_jobs(400)
    scales = fit_job_scales({"m": logits}, folds, np.arange(1200))
    new = {k: random_logits(20, 90 + k) for k in range(3)}
    constants = scales.members["m"]
    by_hand = [moved(z, constants[k].margin, constants[k].tie, constants[k].shift) for k, z in new.items()]
    mean = scales.mean_over_jobs("m", new)
    np.testing.assert_allclose(mean, np.mean(by_hand, axis=0), atol=1e-6)
    assert not np.allclose(mean, np.mean(list(new.values()), axis=0), atol=0.01)
    without = JobScales().mean_over_jobs("m", new)
    np.testing.assert_array_equal(without, np.mean([z.astype(np.float64) for z in new.values()], axis=0).astype("f4"))
    assert JobScales.from_dict(scales.to_dict()) == scales


def pool_loss(arena: Arena, logits: dict[str, Floats]) -> float:
    """Return the cross-fitted log loss of the log-linear pool."""
    pool = np.stack([z.astype(np.float64).mean(axis=1) for z in logits.values()], axis=1)
    losses = np.empty(len(arena.labels))
    for fold in np.unique(arena.folds):
        held = arena.folds == fold
        weights = fit_pool(pool[~held], arena.labels[~held])
        losses[held] = pool_losses(pool[held], arena.labels[held], weights)
    return float(losses.mean())


@pytest.mark.parametrize(("spread", "low", "high"), [(0.3, 0.004, 0.05), (0.0, -0.0005, 0.0005)])
def test_the_log_pool_gains_where_jobs_differ_and_loses_nothing_where_they_do_not(
    spread: float, low: float, high: float
) -> None:
    """Mean of three arenas of 1,500 battles; ``spread`` is the standard deviation of the jobs' constants."""
    gains = []
    for seed in range(3):
        arena, rng = make_arena(1500, seed, k=5), np.random.default_rng(seed)
        logits = {name: z.astype(np.float64) for name, z in arena.logits.items()}
        for z in logits.values():
            for k in range(5):
                log_margin, log_tie, shift = spread * rng.normal(size=3)
                z[arena.folds == k] = moved(z[arena.folds == k], np.exp(log_margin), np.exp(log_tie), shift)
        scaled = fit_job_scales(logits, arena.folds, arena.groups).out_of_fold(logits, arena.folds)
        gains.append(pool_loss(arena, logits) - pool_loss(arena, scaled))
    assert low < np.mean(gains) < high
