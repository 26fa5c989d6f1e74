//! Lays out the tiers below memory: their caches, then the homes of parts.

use std::collections::BTreeMap;

use super::budget::{WidthClass, cache_rows, cacheable_rows, table_shape};
use super::open::ROWS_IN_MEMORY_MAX;
use super::write_back::PLAN_ROWS_MAX;
use super::{Budget, HomeLayout, PartConfig, StoreConfig};
use crate::bits::BitSet;
use crate::device::DeviceKind;
use crate::error::{Error, ErrorKind, Result};
use crate::tier::{
    Home, Locations, LogHome, LogShape, LowerTiers, PartCounts, PartTiers, RowLog, TableLayout, TierCache, UnitCache,
    log_block_size,
};

/// Who may share a log: home, width class, the tiers above that cache it.
type LogRoute = (usize, usize, Vec<bool>);

/// The lower tiers, and the bytes that the device of each has to hold; nothing if no part lives below memory.
pub(super) fn lay_out(
    config: &StoreConfig,
    placed: &[PartConfig],
    classes: &[WidthClass],
    class_of: &[usize],
    staging_rows: usize,
) -> Result<(Option<LowerTiers>, Vec<u64>)> {
    if config.tiers.len() == 1 {
        return Ok((None, Vec::new()));
    }
    let lower = &config.tiers[1..];
    let mut parts = Vec::new();
    for part in placed {
        let shape = table_shape(part.rows, config.row_shape(part.table));
        // Resident parts keep their number here, and nothing else.
        let home = part.home.saturating_sub(1);
        let layout = if part.home > 0 && lower[home].device.kind == DeviceKind::Block {
            TableLayout::in_blocks(&shape, 0)?
        } else {
            TableLayout::in_rows(&shape, 0)?
        };
        parts.push(PartTiers {
            shape,
            class: class_of[part.table],
            home,
            cached_by: (1..config.tiers.len()).map(|tier| part.cached_by.contains(&tier)).collect(),
            exclusive: part.exclusive,
            place: Home::InPlace { layout, present: BitSet::new(0) },
        });
    }
    let mut caches = Vec::new();
    let mut ends = vec![0u64; lower.len()];
    for (position, tier) in lower.iter().enumerate() {
        let seed = config.seed.wrapping_add((position as u64 + 1) << 32);
        let cache = if tier.cache.is_none() {
            TierCache::None
        } else if tier.device.kind == DeviceKind::Byte {
            let rows = cache_rows(tier, classes, &cacheable_rows(placed, class_of, classes.len(), position + 1))?;
            let mut of_classes = Vec::new();
            for (class, rows) in classes.iter().zip(rows) {
                check_slots(rows, &tier.name)?;
                let cache = UnitCache::new(tier.policy, rows as usize, class.row_bytes, ends[position], seed)?;
                ends[position] += cache.device_bytes();
                of_classes.push(cache);
            }
            TierCache::Rows(of_classes)
        } else {
            TierCache::Blocks(Box::new(block_cache(config, placed, &parts, position, seed)?))
        };
        ends[position] = cache.device_bytes();
        caches.push(cache);
    }
    let logs = place_homes(config, placed, &mut parts, &mut ends, staging_rows)?;
    let tiers = LowerTiers {
        granule_bytes: lower.iter().map(|tier| tier.device.granule_bytes).collect(),
        moves_bytes: vec![false; caches.len()],
        counts: vec![PartCounts::default(); parts.len() * caches.len()],
        rows_written_back: vec![0; parts.len()],
        read_modify_writes: vec![0; parts.len()],
        caches,
        parts,
        logs,
    };
    Ok((Some(tiers), ends))
}

fn check_slots(slots: u64, tier: &str) -> Result<()> {
    if slots > ROWS_IN_MEMORY_MAX {
        return Err(Error::new(
            ErrorKind::Capacity,
            "a cache has at most 2^32 - 3 rows of one width, or blocks; lower its budget",
        )
        .with_context("tier", tier));
    }
    Ok(())
}

fn block_cache(
    config: &StoreConfig,
    placed: &[PartConfig],
    parts: &[PartTiers],
    position: usize,
    seed: u64,
) -> Result<UnitCache> {
    let tier = &config.tiers[position + 1];
    // Number and bytes of the home blocks; no log is laid out yet.
    let blocks = |(part, of): (&PartTiers, &PartConfig)| {
        if matches!(config.tiers[of.home].layout, HomeLayout::Log { .. }) {
            let (rows_per_block, block_bytes) = log_block_size(part.shape.row_bytes());
            return (part.shape.rows.div_ceil(rows_per_block), block_bytes);
        }
        match &part.place {
            Home::InPlace { layout, .. } => (layout.blocks, layout.block_bytes),
            Home::Log { .. } => (0, 0),
        }
    };
    let cached = || parts.iter().zip(placed).filter(|(part, _)| part.cached_by[position]).map(blocks);
    let slot_bytes = cached().map(|(_, nbytes)| nbytes).max().unwrap_or(1);
    // Logs have more blocks than their rows fill.
    let most: u64 = cached().map(|(blocks, _)| blocks.saturating_mul(2).saturating_add(64)).sum();
    let all: u64 = parts.iter().zip(placed).map(blocks).map(|(blocks, nbytes)| blocks * nbytes).sum();
    let nbytes = match tier.cache {
        Some(Budget::Bytes(nbytes)) => nbytes,
        Some(Budget::Fraction(share)) => (libm::ceil(all as f64 * share) as u64).max(slot_bytes),
        None => 0,
    };
    let capacity = (nbytes / slot_bytes).min(most);
    if capacity == 0 && most > 0 {
        return Err(Error::new(
            ErrorKind::Capacity,
            "the cache of a tier cannot hold a single block; raise its budget",
        )
        .with_context("tier", &tier.name)
        .with_context("budget_bytes", nbytes)
        .with_context("block_bytes", slot_bytes));
    }
    check_slots(capacity, &tier.name)?;
    UnitCache::new(tier.policy, capacity as usize, slot_bytes, 0, seed)
}

/// Gives every part its place behind the caches, and makes the logs.
fn place_homes(
    config: &StoreConfig,
    placed: &[PartConfig],
    parts: &mut [PartTiers],
    ends: &mut [u64],
    staging_rows: usize,
) -> Result<Vec<LogHome>> {
    let mut routes: BTreeMap<LogRoute, Vec<usize>> = BTreeMap::new();
    for (number, (part, of)) in parts.iter_mut().zip(placed).enumerate() {
        if of.home == 0 {
            continue;
        }
        if matches!(config.tiers[of.home].layout, HomeLayout::Log { .. }) {
            routes.entry((part.home, part.class, part.cached_by.clone())).or_default().push(number);
            continue;
        }
        let Home::InPlace { layout, present } = &mut part.place else { continue };
        layout.first_offset = ends[part.home];
        ends[part.home] = layout.end_offset();
        *present = BitSet::new(layout.blocks);
    }
    let row_tiers = config.tiers.iter().filter(|tier| tier.device.kind == DeviceKind::Byte).count();
    let mut logs = Vec::new();
    for ((home, _, cached_by), members) in routes {
        let tier = &config.tiers[home + 1];
        let HomeLayout::Log { segment_bytes, spare, paged_index, .. } = tier.layout else { continue };
        let directory = tier.backend.directory.as_deref().filter(|_| paged_index);
        let shape = LogShape {
            rows: members.iter().map(|&part| parts[part].shape.rows).sum(),
            row_bytes: parts[members[0]].shape.row_bytes(),
            segment_bytes,
            spare,
            plan_rows_max: PLAN_ROWS_MAX.max(staging_rows) as u64,
            appends_per_row: row_tiers as u64,
        };
        let log = RowLog::new(&shape, ends[home], parts.len() + logs.len(), cached_by)?;
        ends[home] = log.end_offset();
        for &part in &members {
            let locations = Locations::new(parts[part].shape.rows, directory)?;
            parts[part].place = Home::Log { log: logs.len(), locations, is_paged: directory.is_some() };
        }
        logs.push(LogHome { tier: home, first_part: members[0], log });
    }
    Ok(logs)
}
