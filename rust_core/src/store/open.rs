//! From a configuration to a store: layout, budgets, backends.

use std::sync::{Arc, Mutex};

use super::stats::{Counters, MemoryReport};
use super::{Budget, ClockMode, Place, ResidentTable, State, Store, StoreConfig, Table, TierConfig};
use crate::backend::{AlignedBuffer, Backend, Engine, open_backend, physical_memory_bytes};
use crate::cache::METADATA_BYTES_PER_ROW_MAX;
use crate::clock::Clock;
use crate::device::{DeviceKind, Schedule, TimedDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::tier::{BitSet, BlockCache, BlockTiers, RowPool, TableLayout, TableShape, Worker};
use crate::units::checked_bytes;

/// Replaces the backend of a block tier, for tests: `(tier among the block tiers, backend)`.
pub type BackendWrapper<'a> = &'a dyn Fn(usize, Box<dyn Backend>) -> Box<dyn Backend>;

/// Slots and resident rows are 32-bit numbers.
const ROWS_IN_MEMORY_MAX: u64 = u32::MAX as u64 - 2;

impl Store {
    /// Opens a store. Nothing is written: rows come into being as they are first needed.
    pub fn open(config: StoreConfig) -> Result<Self> {
        Self::open_wrapped(config, &|_, backend| backend)
    }

    /// As `open`, with a say in the backends.
    pub fn open_wrapped(config: StoreConfig, wrap: BackendWrapper<'_>) -> Result<Self> {
        check(&config)?;
        let state_floats = config.optimizer.state_floats();
        let shapes: Vec<TableShape> = config
            .tables
            .iter()
            .map(|table| TableShape { rows: table.rows, weight_floats: table.dim, state_floats })
            .collect();
        for (position, shape) in shapes.iter().enumerate() {
            shape.check(position)?;
        }
        let clock = Arc::new(if config.clock == ClockMode::Virtual { Clock::new_virtual() } else { Clock::new_wall() });
        let timed = |(position, tier): (usize, &TierConfig)| TimedDevice {
            storms: tier.faults.storms(position as u64),
            ..TimedDevice::new(tier.device.clone())
        };
        let memory_device = Schedule::new(vec![timed((0, &config.tiers[0]))], config.seed);
        let timed = config.tiers.iter().enumerate().skip(1).map(timed).collect();
        let schedule = Arc::new(Mutex::new(Schedule::new(timed, config.seed)));

        let mut memory = MemoryReport { limit_bytes: config.memory_limit_bytes, ..MemoryReport::default() };
        let parts = if config.tiers.len() == 1 {
            open_resident(&config, &shapes, &mut memory)?
        } else {
            open_tiered(&config, &shapes, &mut memory)?
        };
        memory.check()?;
        let worker = parts.block_tiers.as_ref().map(|tiers| {
            let mut backends = Vec::new();
            let sizes = tiers.middle.iter().map(BlockCache::device_bytes).chain([parts.home_bytes]);
            for (position, (tier, nbytes)) in config.tiers[1..].iter().zip(sizes).enumerate() {
                let place = |error: Error| error.with_context("tier", &tier.name);
                if nbytes > tier.device.capacity_bytes {
                    return Err(place(Error::new(
                        ErrorKind::Capacity,
                        "the device is smaller than what the tier has to hold; use a larger device or fewer rows",
                    ))
                    .with_context("needed_bytes", nbytes)
                    .with_context("capacity_bytes", tier.device.capacity_bytes));
                }
                let backend = open_backend(&tier.backend, nbytes).map_err(place)?;
                backends.push(wrap(position, tier.faults.over(position as u64 + 1, backend)));
            }
            Worker::start(backends, Arc::clone(&clock), Arc::clone(&schedule))
        });
        let worker = worker.transpose()?;
        let tables = config
            .tables
            .iter()
            .cloned()
            .zip(parts.places.iter().copied())
            .map(|(config, place)| Table { config, place })
            .collect();
        let places = parts.places;
        let staging_rows = parts.pools.iter().map(RowPool::staging_rows).collect();
        let counters = Counters::new(config.tiers.len());
        let state = State {
            tables,
            resident: parts.resident,
            pools: parts.pools,
            block_tiers: parts.block_tiers,
            tickets: std::collections::BTreeMap::new(),
            next_ticket: 0,
            pending: Vec::new(),
            write_backs: std::collections::VecDeque::new(),
            arrived_ns: 0,
            arrivals: Vec::new(),
            lateness: crate::device::Lateness::default(),
            counters,
            memory: memory_device,
            poisoned: None,
            closed: false,
        };
        Ok(Self { config, clock, schedule, worker, state: Mutex::new(state), memory, places, staging_rows })
    }
}

struct Parts {
    places: Vec<Place>,
    resident: Vec<ResidentTable>,
    pools: Vec<RowPool>,
    block_tiers: Option<BlockTiers>,
    home_bytes: u64,
}

fn check(config: &StoreConfig) -> Result<()> {
    let fail = |why: &str| Err(Error::new(ErrorKind::Config, why));
    if config.tables.is_empty() {
        return fail("a store needs at least one table");
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
    for (position, tier) in slower.iter().enumerate() {
        if tier.backend.engine == Engine::Phantom {
            return fail(
                "a store cannot keep rows on a phantom backend, which has no bytes; use ram, file or io_uring",
            );
        }
        if tier.cache.is_some() == (position + 1 == slower.len()) {
            return fail(
                "every tier but the last needs a cache budget, and the last, which is the home of all rows, has none",
            );
        }
    }
    if !slower.is_empty() && fastest.cache.is_none() {
        return fail("the fastest tier needs a cache budget when there are tiers below it");
    }
    for tier in &config.tiers {
        tier.device.validate().map_err(|error| error.with_context("tier", &tier.name))?;
        tier.faults.validate().map_err(|error| error.with_context("tier", &tier.name))?;
        if let Some(Budget::Fraction(share)) = tier.cache
            && !(0.0..=1.0).contains(&share)
        {
            return Err(Error::new(ErrorKind::Config, "a budget as a share of all rows lies between 0 and 1")
                .with_context("tier", &tier.name)
                .with_context("budget", share));
        }
    }
    Ok(())
}

/// Refuses sizes before any memory is asked for: by the limit, the device, and this host.
fn check_memory(config: &StoreConfig, limit_bytes: Option<u64>, needed_bytes: u64) -> Result<()> {
    let fastest = &config.tiers[0];
    let bounds = [
        (
            limit_bytes.unwrap_or(u64::MAX),
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

fn open_resident(config: &StoreConfig, shapes: &[TableShape], memory: &mut MemoryReport) -> Result<Parts> {
    let mut needed: u64 = 0;
    for (table, shape) in shapes.iter().enumerate() {
        if shape.rows > ROWS_IN_MEMORY_MAX {
            return Err(Error::new(ErrorKind::Capacity, "a table resident in memory has at most 2^32 - 3 rows")
                .with_context("table", table));
        }
        needed = needed.saturating_add(checked_bytes("a resident table", shape.rows, shape.row_bytes() as u64)?);
    }
    check_memory(config, memory.limit_bytes, needed)?;
    let mut resident = Vec::new();
    for shape in shapes {
        memory.resident_bytes += shape.rows * shape.row_bytes() as u64;
        let floats = |each: usize| AlignedBuffer::try_zeroed(shape.rows as usize * each * size_of::<f32>());
        let present = BitSet::new(shape.rows);
        memory.metadata_bytes += present.metadata_bytes() as u64;
        resident.push(ResidentTable {
            weights: floats(shape.weight_floats)?,
            state: floats(shape.state_floats)?,
            present,
        });
    }
    let places = (0..shapes.len()).map(Place::Resident).collect();
    Ok(Parts { places, resident, pools: Vec::new(), block_tiers: None, home_bytes: 0 })
}

/// Tables of one width share a pool.
struct WidthClass {
    weight_floats: usize,
    tables: Vec<usize>,
    row_bytes: u64,
    rows: u64,
}

/// Cached rows of each class: a share of the rows, or at least one row and the rest of the bytes by size.
fn cache_rows(tier: &TierConfig, classes: &[WidthClass], all_bytes: u64) -> Result<Vec<u64>> {
    let budget = tier.cache.expect("checked before");
    let nbytes = match budget {
        Budget::Fraction(share) => {
            let rows = |class: &WidthClass| (libm::ceil(class.rows as f64 * share) as u64).clamp(1, class.rows);
            return Ok(classes.iter().map(rows).collect());
        }
        Budget::Bytes(nbytes) => nbytes,
    };
    let least = one_row_each(classes);
    let Some(left) = nbytes.checked_sub(least) else {
        return Err(Error::new(
            ErrorKind::Capacity,
            "the cache of the fastest tier cannot hold a single row of each width; raise its budget",
        )
        .with_context("budget_bytes", nbytes)
        .with_context("needed_bytes", least));
    };
    let rows = |class: &WidthClass| {
        let share = u128::from(left) * u128::from(class.rows * class.row_bytes) / u128::from(all_bytes);
        (1 + share as u64 / class.row_bytes).min(class.rows)
    };
    Ok(classes.iter().map(rows).collect())
}

/// Staged rows of each class: the smallest first, each no more than it has and no more than an equal part of what is left.
fn staging_rows(nbytes: u64, classes: &[WidthClass]) -> Result<Vec<u64>> {
    let least = one_row_each(classes);
    if nbytes < least {
        return Err(Error::new(
            ErrorKind::Capacity,
            "staging memory cannot hold a single row of each width; raise staging_bytes",
        )
        .with_context("staging_bytes", nbytes)
        .with_context("needed_bytes", least));
    }
    let mut order: Vec<usize> = (0..classes.len()).collect();
    order.sort_by_key(|&position| classes[position].rows * classes[position].row_bytes);
    // One row of each width is set aside, so that a wide class never finds nothing left.
    let mut left = nbytes - least;
    let mut rows = vec![0; classes.len()];
    for (done, &position) in order.iter().enumerate() {
        let class = &classes[position];
        let part = left / (classes.len() - done) as u64;
        rows[position] = (1 + part / class.row_bytes).min(class.rows);
        left -= (rows[position] - 1) * class.row_bytes;
    }
    Ok(rows)
}

fn one_row_each(classes: &[WidthClass]) -> u64 {
    classes.iter().map(|class| class.row_bytes).sum()
}

fn open_tiered(config: &StoreConfig, shapes: &[TableShape], memory: &mut MemoryReport) -> Result<Parts> {
    let mut classes: Vec<WidthClass> = Vec::new();
    for (table, shape) in shapes.iter().enumerate() {
        if let Some(class) = classes.iter_mut().find(|class| class.weight_floats == shape.weight_floats) {
            class.tables.push(table);
            class.rows += shape.rows;
        } else {
            let row_bytes = shape.row_bytes() as u64;
            classes.push(WidthClass {
                weight_floats: shape.weight_floats,
                tables: vec![table],
                row_bytes,
                rows: shape.rows,
            });
        }
    }
    let all_bytes = classes.iter().try_fold(0u64, |sum, class| {
        let bytes = checked_bytes("a store", class.rows, class.row_bytes)?;
        sum.checked_add(bytes).ok_or_else(|| Error::new(ErrorKind::Capacity, "a store does not fit in 64 bits"))
    })?;
    let cache_rows = cache_rows(&config.tiers[0], &classes, all_bytes)?;
    let staging_rows = staging_rows(config.staging_bytes, &classes)?;
    let slots = |position: usize| cache_rows[position] + staging_rows[position];
    let needed =
        classes.iter().enumerate().map(|(position, class)| RowPool::bytes_for(class.row_bytes, slots(position)));
    check_memory(config, memory.limit_bytes, needed.fold(0, u64::saturating_add))?;
    let state_floats = config.optimizer.state_floats();
    let mut places = vec![Place::Pooled(0); shapes.len()];
    let mut pools = Vec::new();
    for (position, class) in classes.iter().enumerate() {
        if slots(position) > ROWS_IN_MEMORY_MAX {
            return Err(Error::new(
                ErrorKind::Capacity,
                "a pool of rows in memory has at most 2^32 - 3 slots; lower the budget",
            ));
        }
        let (cache_rows, staging_rows) = (cache_rows[position], staging_rows[position]);
        let pool = RowPool::new(class.weight_floats, state_floats, cache_rows as usize, staging_rows as usize)?;
        memory.cached_bytes += cache_rows * class.row_bytes;
        memory.staging_bytes += staging_rows * class.row_bytes;
        memory.metadata_bytes += pool.metadata_bytes() as u64;
        debug_assert!(pool.metadata_bytes() <= METADATA_BYTES_PER_ROW_MAX * pool.slots.capacity() + 64);
        pools.push(pool);
        for &table in &class.tables {
            places[table] = Place::Pooled(position);
        }
    }

    let mut layouts = Vec::new();
    let mut end = 0;
    for shape in shapes {
        let layout = TableLayout::new(shape, end)?;
        end = layout.end_offset();
        layouts.push(layout);
    }
    let slot_bytes = layouts.iter().map(|layout| layout.block_bytes).max().unwrap_or(1);
    let blocks: u64 = layouts.iter().map(|layout| layout.blocks).sum();
    let mut middle = Vec::new();
    for tier in &config.tiers[1..config.tiers.len() - 1] {
        let nbytes = match tier.cache.expect("checked before") {
            Budget::Bytes(nbytes) => nbytes,
            Budget::Fraction(share) => (libm::ceil(end as f64 * share) as u64).max(slot_bytes),
        };
        let capacity = (nbytes / slot_bytes).min(blocks);
        if capacity == 0 {
            return Err(Error::new(
                ErrorKind::Capacity,
                "the cache of a tier cannot hold a single block; raise its budget",
            )
            .with_context("tier", &tier.name)
            .with_context("budget_bytes", nbytes)
            .with_context("block_bytes", slot_bytes));
        }
        if capacity > ROWS_IN_MEMORY_MAX {
            return Err(Error::new(ErrorKind::Capacity, "a cache has at most 2^32 - 3 blocks; lower its budget")
                .with_context("tier", &tier.name));
        }
        middle.push(BlockCache::new(capacity as usize, slot_bytes));
    }
    let present = layouts.iter().map(|layout| BitSet::new(layout.blocks)).collect();
    let block_tiers = BlockTiers { middle, layouts, shapes: shapes.to_vec(), present };
    memory.metadata_bytes += block_tiers.metadata_bytes() as u64;
    Ok(Parts { places, resident: Vec::new(), pools, block_tiers: Some(block_tiers), home_bytes: end })
}
