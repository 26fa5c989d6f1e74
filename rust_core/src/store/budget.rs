//! How many rows of each width a tier has room for.

use super::{Budget, PartConfig, TierConfig};
use crate::embedding::RowShape;
use crate::error::{Error, ErrorKind, Result};
use crate::tier::TableShape;
use crate::units::checked_bytes;

/// What a tier knows of a table.
pub(super) fn table_shape(rows: u64, shape: RowShape) -> TableShape {
    TableShape { rows, weight_bytes: shape.weight_bytes(), state_floats: shape.state_floats }
}

/// Rows of one type and width.
#[derive(Debug, Clone, Copy)]
pub(super) struct WidthClass {
    pub(super) shape: RowShape,
    pub(super) row_bytes: u64,
    /// Of all tables.
    pub(super) rows: u64,
    /// Of these, the rows whose home is memory.
    pub(super) resident_rows: u64,
}

/// The classes, and that of each table.
pub(super) fn width_classes(shapes: &[(u64, RowShape)], parts: &[PartConfig]) -> Result<(Vec<WidthClass>, Vec<usize>)> {
    let mut classes: Vec<WidthClass> = Vec::new();
    let mut class_of = Vec::new();
    for &(rows, shape) in shapes {
        let known = classes.iter().position(|class| class.shape == shape);
        let class = known.unwrap_or_else(|| {
            let row_bytes = table_shape(rows, shape).row_bytes() as u64;
            classes.push(WidthClass { shape, row_bytes, rows: 0, resident_rows: 0 });
            classes.len() - 1
        });
        classes[class].rows = classes[class].rows.saturating_add(rows);
        class_of.push(class);
    }
    for part in parts.iter().filter(|part| part.home == 0) {
        classes[class_of[part.table]].resident_rows += part.rows;
    }
    classes.iter().try_fold(0u64, |sum, class| {
        let bytes = checked_bytes("a store", class.rows, class.row_bytes)?;
        sum.checked_add(bytes).ok_or_else(|| Error::new(ErrorKind::Capacity, "a store does not fit in 64 bits"))
    })?;
    Ok((classes, class_of))
}

/// Rows of each class that parts have a tier cache.
pub(super) fn cacheable_rows(parts: &[PartConfig], class_of: &[usize], classes: usize, tier: usize) -> Vec<u64> {
    let mut rows = vec![0; classes];
    for part in parts.iter().filter(|part| part.cached_by.contains(&tier)) {
        rows[class_of[part.table]] += part.rows;
    }
    rows
}

/// Cached rows of each class: a share of all its rows, or at least one row and the rest of the bytes by size; never more
/// than there are to cache.
pub(super) fn cache_rows(tier: &TierConfig, classes: &[WidthClass], cacheable: &[u64]) -> Result<Vec<u64>> {
    let nbytes = match tier.cache {
        None => return Ok(vec![0; classes.len()]),
        Some(Budget::Fraction(share)) => {
            let rows = |(class, &most): (&WidthClass, &u64)| {
                if most == 0 { 0 } else { (libm::ceil(class.rows as f64 * share) as u64).clamp(1, most) }
            };
            return Ok(classes.iter().zip(cacheable).map(rows).collect());
        }
        Some(Budget::Bytes(nbytes)) => nbytes,
    };
    let cached = |(class, &most): (&WidthClass, &u64)| if most == 0 { 0 } else { class.row_bytes };
    let least: u64 = classes.iter().zip(cacheable).map(cached).sum();
    let Some(left) = nbytes.checked_sub(least) else {
        return Err(Error::new(
            ErrorKind::Capacity,
            "the cache of a tier cannot hold a single row of each width; raise its budget",
        )
        .with_context("tier", &tier.name)
        .with_context("budget_bytes", nbytes)
        .with_context("needed_bytes", least));
    };
    let all: u128 =
        classes.iter().zip(cacheable).map(|(class, &rows)| u128::from(rows) * u128::from(class.row_bytes)).sum();
    let rows = |(class, &most): (&WidthClass, &u64)| {
        if most == 0 {
            return 0;
        }
        let share = u128::from(left) * u128::from(most * class.row_bytes) / all;
        (1 + share as u64 / class.row_bytes).min(most)
    };
    Ok(classes.iter().zip(cacheable).map(rows).collect())
}

/// Staged rows of each class: the smallest first, each no more than it has and no more than an equal part of what is left.
pub(super) fn staging_rows(nbytes: u64, classes: &[WidthClass]) -> Result<Vec<u64>> {
    let staged = |class: &WidthClass| class.rows - class.resident_rows;
    let least: u64 = classes.iter().filter(|class| staged(class) > 0).map(|class| class.row_bytes).sum();
    if nbytes < least {
        return Err(Error::new(
            ErrorKind::Capacity,
            "staging memory cannot hold a single row of each width; raise staging_bytes",
        )
        .with_context("staging_bytes", nbytes)
        .with_context("needed_bytes", least));
    }
    let mut order: Vec<usize> = (0..classes.len()).filter(|&position| staged(&classes[position]) > 0).collect();
    order.sort_by_key(|&position| staged(&classes[position]) * classes[position].row_bytes);
    // One row of each width is set aside, so that a wide class never finds nothing left.
    let mut left = nbytes - least;
    let mut rows = vec![0; classes.len()];
    for (done, &position) in order.iter().enumerate() {
        let class = &classes[position];
        let part = left / (order.len() - done) as u64;
        rows[position] = (1 + part / class.row_bytes).min(staged(class));
        left -= (rows[position] - 1) * class.row_bytes;
    }
    Ok(rows)
}
