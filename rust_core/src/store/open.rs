//! From a configuration to a store: layout, budgets, backends.

use std::sync::{Arc, Mutex};

use super::stats::{Counters, MemoryReport};
use super::{Budget, ClockMode, Place, ResidentTable, State, Store, StoreConfig, Table};
use crate::backend::{AlignedBuffer, Backend, Engine, open_backend};
use crate::cache::METADATA_BYTES_PER_ROW_MAX;
use crate::clock::Clock;
use crate::device::{DeviceKind, DeviceSnapshot, Schedule};
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
        let timed =
            config.tiers[1..].iter().map(|tier| (tier.device.clone(), tier.device.queue_depth as usize)).collect();
        let schedule = Arc::new(Mutex::new(Schedule::new(timed, config.seed)));

        let mut memory = MemoryReport::default();
        let mut parts = if config.tiers.len() == 1 {
            open_resident(&shapes, &mut memory)?
        } else {
            open_tiered(&config, &shapes, &mut memory)?
        };
        memory.limit_bytes = config.memory_limit_bytes;
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
                backends.push(wrap(position, open_backend(&tier.backend, nbytes).map_err(place)?));
            }
            Worker::start(backends, Arc::clone(&clock), Arc::clone(&schedule))
        });
        let worker = worker.transpose()?;
        let tables = config
            .tables
            .iter()
            .cloned()
            .zip(parts.places.drain(..))
            .map(|(config, place)| Table { config, place })
            .collect();
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
            counters,
            memory_traffic: DeviceSnapshot::default(),
            poisoned: None,
            closed: false,
        };
        Ok(Self { config, clock, schedule, worker, state: Mutex::new(state), memory, staging_rows })
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
    for (position, tier) in slower.iter().enumerate() {
        if tier.device.kind != DeviceKind::Block {
            return fail("a tier below the fastest must be a block device");
        }
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

fn open_resident(shapes: &[TableShape], memory: &mut MemoryReport) -> Result<Parts> {
    let mut resident = Vec::new();
    for (table, shape) in shapes.iter().enumerate() {
        if shape.rows > ROWS_IN_MEMORY_MAX {
            return Err(Error::new(ErrorKind::Capacity, "a table resident in memory has at most 2^32 - 3 rows")
                .with_context("table", table));
        }
        let bytes = checked_bytes("a resident table", shape.rows, shape.row_bytes() as u64)?;
        memory.resident_bytes += bytes;
        let floats = |each: usize| AlignedBuffer::zeroed(shape.rows as usize * each * size_of::<f32>());
        let present = BitSet::new(shape.rows);
        memory.metadata_bytes += present.metadata_bytes() as u64;
        resident.push(ResidentTable {
            weights: floats(shape.weight_floats),
            state: floats(shape.state_floats),
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
    // A class gets the share of a byte budget that its rows have of all bytes, and at least one row.
    let rows_for = |nbytes: u64, class: &WidthClass| {
        let share = u128::from(nbytes) * u128::from(class.rows * class.row_bytes) / u128::from(all_bytes);
        ((share as u64) / class.row_bytes).clamp(1, class.rows)
    };
    let fastest = config.tiers[0].cache.expect("checked before");
    let state_floats = config.optimizer.state_floats();
    let mut places = vec![Place::Pooled(0); shapes.len()];
    let mut pools = Vec::new();
    for (position, class) in classes.iter().enumerate() {
        let cache_rows = match fastest {
            Budget::Bytes(nbytes) if nbytes < class.row_bytes => {
                return Err(Error::new(
                    ErrorKind::Capacity,
                    "the cache of the fastest tier cannot hold a single row; raise its budget",
                )
                .with_context("budget_bytes", nbytes)
                .with_context("row_bytes", class.row_bytes));
            }
            Budget::Bytes(nbytes) => rows_for(nbytes, class),
            Budget::Fraction(share) => (libm::ceil(class.rows as f64 * share) as u64).clamp(1, class.rows),
        };
        let staging_rows = rows_for(config.staging_bytes, class);
        if cache_rows + staging_rows > ROWS_IN_MEMORY_MAX {
            return Err(Error::new(
                ErrorKind::Capacity,
                "a pool of rows in memory has at most 2^32 - 3 slots; lower the budget",
            ));
        }
        let pool = RowPool::new(class.weight_floats, state_floats, cache_rows as usize, staging_rows as usize);
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
            Budget::Fraction(share) => libm::ceil(end as f64 * share) as u64,
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
