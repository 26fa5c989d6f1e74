//! From a configuration to a store: budgets, layout, backends.

use std::sync::Arc;

use super::budget::{WidthClass, cache_rows, cacheable_rows, staging_rows, table_shape, width_classes};
use super::compact::LogCompaction;
use super::parts::{Part, Place, Table};
use super::stats::{Counters, MemoryReport};
use super::units::StoreUnits;
use super::{Budget, ClockMode, HomeLayout, PartConfig, State, Store, StoreConfig, TierConfig};
use crate::backend::{Backend, Engine, open_backend, physical_memory_bytes};
use crate::bits::BitSet;
use crate::cache::KeySpace;
use crate::clock::Clock;
use crate::device::{DeviceKind, Schedule, TimedDevice};
use crate::embedding::{Instructions, RowShape, Scratch, Threads};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Condvar, Mutex};
use crate::tier::{PoolSize, ROW_BITS, RowPool, TableShape, Worker};

/// Replaces the backend of a lower tier, for tests: `(tier among the lower tiers, backend)`.
pub type BackendWrapper<'a> = &'a dyn Fn(usize, Box<dyn Backend>) -> Box<dyn Backend>;

/// Places in memory are 32-bit numbers.
pub(super) const ROWS_IN_MEMORY_MAX: u64 = u32::MAX as u64 - 2;
/// Compaction has eight of them in memory.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;
/// Of a row.
const COLUMNS_MAX: usize = 1 << 20;
const SPARE_MIN: f64 = 0.2;
const SPARE_MAX: f64 = 8.0;

impl Store {
    /// Opens a store. Nothing is written: rows come into being as they are first needed.
    pub fn open(config: StoreConfig) -> Result<Self> {
        Self::open_wrapped(config, &|_, backend| backend)
    }

    /// As `open`, with a say in the backends.
    pub fn open_wrapped(config: StoreConfig, wrap: BackendWrapper<'_>) -> Result<Self> {
        check(&config)?;
        let parts = config.placed_parts()?;
        let instructions = config.simd.map_or_else(|| Ok(Instructions::best()), Instructions::at)?;
        let threads = Threads::new(config.threads)?;
        let shapes: Vec<(u64, RowShape)> =
            config.tables.iter().enumerate().map(|(table, of)| (of.rows, config.row_shape(table))).collect();
        for (position, &(rows, shape)) in shapes.iter().enumerate() {
            table_shape(rows, shape).check(position)?;
        }
        TableShape { rows: 1, weight_bytes: 1, state_floats: 0 }.check(parts.len())?;
        let clock = Arc::new(if config.clock == ClockMode::Virtual { Clock::new_virtual() } else { Clock::new_wall() });
        let timed = |(position, tier): (usize, &TierConfig)| TimedDevice {
            storms: tier.faults.storms(position as u64),
            ..TimedDevice::new(tier.device.clone())
        };
        let memory_device = Schedule::new(vec![timed((0, &config.tiers[0]))], config.seed);
        let timed = config.tiers.iter().enumerate().skip(1).map(timed).collect();
        let mut schedule = Schedule::new(timed, config.seed);
        if config.timeline {
            schedule.start_log();
        }
        let schedule = Arc::new(std::sync::Mutex::new(schedule));

        let (classes, class_of) = width_classes(&shapes, &parts)?;
        let mut memory = MemoryReport { limit_bytes: config.memory_limit_bytes, ..MemoryReport::default() };
        let pools = open_pools(&config, &parts, &classes, &class_of, &mut memory)?;
        let staging_rows = pools.iter().map(|pool| pool.size().staging_rows).sum();
        let (mut lower, needed) = super::lower::lay_out(&config, &parts, &classes, &class_of, staging_rows)?;
        memory.metadata_bytes += lower.as_ref().map_or(0, |lower| lower.metadata_bytes() as u64);
        memory.paged_index_bytes = lower.as_ref().map_or(0, |lower| lower.paged_bytes() as u64);
        let (parts, tables) = place_parts(&config, &parts, &class_of);
        memory.metadata_bytes += parts.iter().map(Part::metadata_bytes).sum::<u64>();
        memory.check()?;
        let worker = lower.as_mut().map(|lower| {
            let mut backends = Vec::new();
            for (position, (tier, &nbytes)) in config.tiers[1..].iter().zip(&needed).enumerate() {
                let backend = open_tier(tier, nbytes).map_err(|error| error.with_context("tier", &tier.name))?;
                // Faults belong to whole blocks.
                lower.moves_bytes[position] = backend.alignment_bytes() == 1 && tier.faults.is_off();
                backends.push((tier.name.clone(), wrap(position, tier.faults.over(position as u64 + 1, backend))));
            }
            let units = StoreUnits::new(&config, &parts, lower);
            Worker::start(backends, Box::new(units), Arc::clone(&clock), Arc::clone(&schedule))
        });
        let mut keeps_all = vec![true; pools.len()];
        for part in &parts {
            keeps_all[tables[part.table].pool] &= !matches!(part.place, Place::Pooled { is_cached: false, .. });
        }
        let state = State {
            keeps_all,
            compactions: lower.iter().flat_map(|lower| &lower.logs).map(|_| LogCompaction::default()).collect(),
            counters: vec![Counters::default(); tables.len()],
            parts,
            pools,
            lower,
            tickets: std::collections::BTreeMap::new(),
            next_ticket: 0,
            pending: Vec::new(),
            announced: std::collections::VecDeque::new(),
            write_backs: std::collections::VecDeque::new(),
            arrived: Vec::new(),
            lateness: crate::device::Lateness::default(),
            memory: memory_device,
            steps: 0,
            scratch: Scratch::default(),
            non_finite_values: 0,
            dirty_samples: Vec::new(),
            closed: false,
        };
        let (worker, state, room) = (worker.transpose()?, Mutex::new(state), Condvar::new());
        Ok(Self { config, tables, clock, schedule, worker, state, room, memory, instructions, threads })
    }
}

fn open_tier(tier: &TierConfig, nbytes: u64) -> Result<Box<dyn Backend>> {
    if nbytes > tier.device.capacity_bytes {
        return Err(Error::new(
            ErrorKind::Capacity,
            "the device is smaller than what the tier has to hold; use a larger device or fewer rows",
        )
        .with_context("needed_bytes", nbytes)
        .with_context("capacity_bytes", tier.device.capacity_bytes));
    }
    let backend = open_backend(&tier.backend, nbytes.max(1))?;
    if tier.device.kind == DeviceKind::Byte && backend.alignment_bytes() > 1 {
        return Err(Error::new(
            ErrorKind::Config,
            "a byte-addressable tier moves single rows, which a file without the page cache cannot; \
             use engine = \"ram\", or direct = \"off\"",
        ));
    }
    Ok(backend)
}

fn check(config: &StoreConfig) -> Result<()> {
    let fail = |why: &str| Err(Error::new(ErrorKind::Config, why));
    if config.tables.is_empty() {
        return fail("a store needs at least one table");
    }
    if let Some(table) = config.tables.iter().find(|table| !(1..=COLUMNS_MAX).contains(&table.dim)) {
        return Err(Error::new(ErrorKind::Config, "a row has at least one and at most 1,048,576 columns")
            .with_context("table", &table.name)
            .with_context("columns", table.dim));
    }
    if let Some(table) = config.tables.iter().find(|table| !table.row_type.is_trained()) {
        return Err(Error::new(
            ErrorKind::Config,
            "rows of this type are served, not trained; use fp32, fp16, bf16 or int8",
        )
        .with_context("table", &table.name)
        .with_context("row_type", table.row_type.name()));
    }
    let Some((fastest, slower)) = config.tiers.split_first() else {
        return fail("a store needs at least one tier");
    };
    if fastest.device.kind != DeviceKind::Byte {
        return fail("the fastest tier must be byte-addressable; put a memory before the block devices");
    }
    if !fastest.faults.is_off() {
        return fail("the fastest tier is ordinary memory and has no injected faults; give them to a tier below");
    }
    if slower.iter().any(|tier| tier.backend.engine == Engine::Phantom) {
        return fail("a store cannot keep rows on a phantom backend, which has no bytes; use ram, file or io_uring");
    }
    if !slower.is_sorted_by_key(|tier| tier.device.kind == DeviceKind::Block) {
        return fail("byte-addressable tiers come before block devices; change the order of the tiers");
    }
    if let Some(last) = slower.last().filter(|last| last.cache.is_some()) {
        return Err(Error::new(ErrorKind::Config, "the slowest tier has nothing below it to cache; remove its budget")
            .with_context("tier", &last.name));
    }
    for tier in &config.tiers {
        let place = |error: Error| error.with_context("tier", &tier.name);
        tier.device.validate().map_err(place)?;
        tier.faults.validate().map_err(place)?;
        if let Some(Budget::Fraction(share)) = tier.cache
            && !(0.0..=1.0).contains(&share)
        {
            return Err(place(Error::new(ErrorKind::Config, "a budget as a share of all rows lies between 0 and 1"))
                .with_context("budget", share));
        }
        if let HomeLayout::Log { segment_bytes, spare, compaction_share, paged_index } = tier.layout {
            let why = if tier.device.kind == DeviceKind::Byte {
                "a log needs a block device; a byte-addressable tier writes rows where they are"
            } else if !(1..=SEGMENT_BYTES_MAX).contains(&segment_bytes) || !(SPARE_MIN..=SPARE_MAX).contains(&spare) {
                "a log needs segments of at most 16 MiB and spare room between 0.2 and 8 of its rows"
            } else if !(0.0..=1.0).contains(&compaction_share) {
                "a log's compaction_share lies between 0 and 1"
            } else if paged_index && tier.backend.directory.is_none() {
                "a paged index needs a directory; use a file engine, or leave the index in memory"
            } else {
                continue;
            };
            return Err(place(Error::new(ErrorKind::Config, why)));
        }
    }
    Ok(())
}

/// Refuses sizes before any memory is asked for: by the limit, the device, and this host.
fn check_memory(config: &StoreConfig, needed_bytes: u64) -> Result<()> {
    let fastest = &config.tiers[0];
    let bounds = [
        (
            config.memory_limit_bytes.unwrap_or(u64::MAX),
            "the store needs more memory than its limit; lower the cache or the staging budget",
        ),
        (
            fastest.device.capacity_bytes,
            "the rows in memory do not fit on the fastest tier's device; lower its budgets",
        ),
        (physical_memory_bytes(), "the rows in memory do not fit on this host; give them a home on a slower tier"),
    ];
    match bounds.into_iter().find(|&(bound, _)| needed_bytes > bound) {
        None => Ok(()),
        Some((bound, why)) => Err(Error::new(ErrorKind::Capacity, why)
            .with_context("tier", &fastest.name)
            .with_context("needed_bytes", needed_bytes)
            .with_context("available_bytes", bound)),
    }
}

fn open_pools(
    config: &StoreConfig,
    parts: &[PartConfig],
    classes: &[WidthClass],
    class_of: &[usize],
    memory: &mut MemoryReport,
) -> Result<Vec<RowPool>> {
    let fastest = &config.tiers[0];
    let all_resident = parts.iter().all(|part| part.home == 0);
    if !all_resident && fastest.cache.is_none() {
        return Err(Error::new(
            ErrorKind::Config,
            "the fastest tier needs a cache budget when rows live on tiers below it",
        )
        .with_context("tier", &fastest.name));
    }
    let cached = cache_rows(fastest, classes, &cacheable_rows(parts, class_of, classes.len(), 0))?;
    let staged = if all_resident { vec![0; classes.len()] } else { staging_rows(config.staging_bytes, classes)? };
    let mut sizes = Vec::new();
    let mut needed = 0u64;
    for ((class, &cache_rows), &staging_rows) in classes.iter().zip(&cached).zip(&staged) {
        if class.resident_rows.saturating_add(cache_rows).saturating_add(staging_rows) > ROWS_IN_MEMORY_MAX {
            return Err(Error::new(
                ErrorKind::Capacity,
                "at most 2^32 - 3 rows of one width are in memory; lower the budget, or give rows another home",
            )
            .with_context("columns", class.shape.dim));
        }
        let size = PoolSize {
            resident_rows: class.resident_rows as usize,
            cache_rows: cache_rows as usize,
            staging_rows: staging_rows as usize,
        };
        needed = needed.saturating_add(RowPool::bytes_for(class.row_bytes, size));
        sizes.push(size);
    }
    check_memory(config, needed)?;
    let mut pools = Vec::new();
    for (number, (class, &size)) in classes.iter().zip(&sizes).enumerate() {
        let seed = config.seed.wrapping_add(number as u64);
        let is_here = |part: &PartConfig| part.home > 0 && class_of[part.table] == number;
        let lens = parts.iter().map(|part| if is_here(part) { part.rows } else { 0 }).collect();
        let rows = KeySpace { lens, shift: ROW_BITS };
        let pool =
            RowPool::new(class.shape.weight_bytes(), class.shape.state_floats, size, fastest.policy, seed, &rows)?;
        memory.resident_bytes += class.resident_rows * class.row_bytes;
        memory.cached_bytes += size.cache_rows as u64 * class.row_bytes;
        memory.staging_bytes += size.staging_rows as u64 * class.row_bytes;
        memory.metadata_bytes += pool.metadata_bytes() as u64;
        pools.push(pool);
    }
    Ok(pools)
}

/// The parts in memory, and which of them make up which table.
fn place_parts(config: &StoreConfig, placed: &[PartConfig], class_of: &[usize]) -> (Vec<Part>, Vec<Table>) {
    let mut next_resident = vec![0u32; class_of.iter().max().map_or(0, |last| last + 1)];
    let mut parts = Vec::new();
    for part in placed {
        let place = if part.home == 0 {
            let next = &mut next_resident[class_of[part.table]];
            let first = *next;
            *next += part.rows as u32;
            Place::Resident { first, present: BitSet::new(part.rows), absent: part.rows }
        } else {
            Place::Pooled { is_cached: part.cached_by.contains(&0), is_exclusive: part.exclusive }
        };
        parts.push(Part { table: part.table, first_row: part.first_row, place });
    }
    let mut first_part = 0;
    let tables = config.tables.iter().enumerate().map(|(number, table)| {
        let count = parts[first_part..].iter().take_while(|part| part.table == number).count();
        let mine = &parts[first_part..first_part + count];
        let is_pooled = mine.iter().any(|part| matches!(part.place, Place::Pooled { .. }));
        let (config, shape) = (table.clone(), config.row_shape(number));
        let resident_first = match mine {
            [Part { place: Place::Resident { first, .. }, .. }] => Some(*first),
            _ => None,
        };
        let pool = class_of[number];
        let table = Table { config, shape, pool, is_pooled, resident_first, first_part, parts: count };
        first_part += count;
        table
    });
    let tables = tables.collect();
    (parts, tables)
}
