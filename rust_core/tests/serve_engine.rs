//! The serving engine gives the bits of plain sums whatever is cached, updated, refreshed or rolled back, to any number of threads.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use proptest::prelude::*;
use serde_json::{Value, json};
use tiermem_core::ErrorKind;
use tiermem_core::embedding::{Instructions, RowType, decode_rows, encode_rows};
use tiermem_core::rng;
use tiermem_core::serve::{Engine, EngineConfig, Load, Simulation, SimulationConfig};

const OPTANE: &str = include_str!("../../python/tiermem/emulator_configs/devices/optane-p5800x.toml");
const TYPES: [RowType; 4] = [RowType::Fp32, RowType::Fp16, RowType::Int8Fp16, RowType::Int4];

/// Columns, rows and placement of each table.
const TABLES: [(usize, u64, &str); 4] =
    [(20, 300, "cached"), (100, 200, "cached"), (16, 90, "uncached"), (8, 50, "fixed")];

fn device() -> Value {
    let mut spec: Value = toml::from_str(OPTANE).unwrap();
    spec.as_object_mut().unwrap().remove("published");
    spec
}

#[derive(Debug, Clone, Copy)]
struct Setup {
    row_type: RowType,
    total_bytes: u64,
    reads: (u32, u32),
    versions: usize,
    is_sub_block: bool,
    update_bytes: u64,
    block_bytes: u64,
}

const SETUP: Setup = Setup {
    row_type: RowType::Fp32,
    total_bytes: 120_000,
    reads: (8, 20),
    versions: 2,
    is_sub_block: false,
    update_bytes: 20_000,
    block_bytes: 512,
};

fn serve_json(setup: Setup) -> Value {
    let table = |(number, &(columns, rows, placement)): (usize, &(usize, u64, &str))| {
        let name = format!("table-{number}");
        json!({"name": name, "ids": rows, "rows": rows, "columns": columns, "row_type": setup.row_type.name(),
               "placement": placement})
    };
    json!({
        "tables": TABLES.iter().enumerate().map(table).collect::<Vec<_>>(),
        "device": {
            "spec": device(), "replicas": 1, "block_bytes": setup.block_bytes, "is_sub_block": setup.is_sub_block,
            "limits": {"per_table": setup.reads.0, "total": setup.reads.1}, "hedge_after_ns": null,
        },
        "memory": {
            "total_bytes": setup.total_bytes, "pooled_share": 0.3, "update_bytes": setup.update_bytes,
            "dense_row_bytes_max": 255, "policy": "lru", "pooled_ids_min": 3, "pooled_match": "in_order",
        },
    })
}

fn engine(setup: Setup) -> Arc<Engine> {
    let config = json!({"serve": serve_json(setup), "backend": {"engine": "ram"}, "time": "virtual",
                        "versions": setup.versions, "seed": 1});
    Arc::new(Engine::open(serde_json::from_value::<EngineConfig>(config).unwrap()).unwrap())
}

/// The weights of a row in a version: small multiples of a power of two, so that every type but the codes keeps them.
fn weights(table: usize, row: u64, version: u64) -> Vec<f32> {
    let key = rng::stream(rng::stream(version, table as u64), row);
    (0..TABLES[table].0 as u64).map(|column| (rng::draw(key, column) % 1024) as f32 / 64.0 - 8.0).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn load(engine: &Engine, version: u64, warm: bool) -> u64 {
    let new = engine.new_version().unwrap();
    for (table, &(_, rows, _)) in TABLES.iter().enumerate() {
        let per_load = engine.rows_per_load(table).unwrap();
        for first in (0..rows).step_by(per_load as usize) {
            let rows = first..(first + per_load).min(rows);
            let values: Vec<f32> = rows.flat_map(|row| weights(table, row, version)).collect();
            engine.load(&new, table, RowType::Fp32, &bytes(&values)).unwrap();
        }
    }
    engine.commit(&new, warm).unwrap()
}

/// A row as the stored type has it.
fn as_stored(row_type: RowType, values: &[f32]) -> Vec<f32> {
    let scalar = Instructions::all()[0];
    let (mut row, mut back) = (vec![0; row_type.row_bytes(values.len())], vec![0.0; values.len()]);
    encode_rows(scalar, row_type, values.len(), values, None, &mut row);
    decode_rows(scalar, row_type, values.len(), &row, &mut back);
    back
}

type Query = Vec<(Vec<i64>, Vec<i64>)>;

fn query(seed: u64) -> Query {
    let table = |(table, &(_, rows, _)): (usize, &(usize, u64, &str))| {
        let key = rng::stream(seed, table as u64);
        let bags = 1 + rng::draw(key, 0) % 3;
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        for bag in 0..bags {
            starts.push(ids.len() as i64);
            let length = rng::draw(key, 10 + bag) % 6;
            // Skewed, so that rows and lists come again.
            ids.extend(
                (0..length)
                    .map(|n| (rng::draw(key, 100 * bag + n + 50) % rows % (1 + rng::draw(key, n) % rows)) as i64),
            );
        }
        (ids, starts)
    };
    TABLES.iter().enumerate().map(table).collect()
}

/// Pooled rows of a query, table by table, added in order.
fn plainly(query: &Query, row: impl Fn(usize, u64) -> Vec<f32>) -> Vec<u32> {
    let mut out = Vec::new();
    for (table, (ids, starts)) in query.iter().enumerate() {
        for (bag, &start) in starts.iter().enumerate() {
            let end = starts.get(bag + 1).map_or(ids.len(), |&end| end as usize);
            let mut sums = vec![0.0f32; TABLES[table].0];
            for &id in &ids[start as usize..end] {
                sums.iter_mut().zip(row(table, id as u64)).for_each(|(sum, value)| *sum += value);
            }
            out.extend(sums.iter().map(|sum| sum.to_bits()));
        }
    }
    out
}

fn ask(engine: &Arc<Engine>, query: &Query) -> Vec<u32> {
    let views: Vec<(&[i64], &[i64])> = query.iter().map(|(ids, starts)| (&ids[..], &starts[..])).collect();
    let lookup = engine.begin(&views).unwrap();
    let floats = lookup.outputs().iter().zip(TABLES).map(|(bags, (columns, ..))| bags * columns).sum();
    let mut out = vec![7.0; floats];
    lookup.pool_memory(&mut out).unwrap();
    lookup.finish(&mut out).unwrap();
    out.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]
    /// Against a plain copy of all rows, through updates, flushes, refreshes and rollbacks.
    #[test]
    fn answers_are_plain_sums(
        actions in prop::collection::vec((0u8..12, any::<u64>()), 1..60),
        row_type in prop::sample::select(&TYPES),
        total_bytes in prop::sample::select(&[80_000u64, 120_000, 400_000]),
        reads in prop::sample::select(&[(1u32, 1u32), (8, 20)]),
        is_sub_block: bool,
        warm: bool,
        block_bytes in prop::sample::select(&[512u64, 4096]),
    ) {
        // Buffers of larger blocks take more.
        let total_bytes = total_bytes + 20 * (block_bytes - 512);
        let update_bytes = if total_bytes > 100_000 { 20_000 } else { 3_000 };
        let engine = engine(Setup { row_type, total_bytes, reads, is_sub_block, update_bytes, block_bytes, ..SETUP });
        load(&engine, 1, false);
        let mut rows: HashMap<(usize, u64), Vec<f32>> = HashMap::new();
        let (mut number, mut before) = (1, None);
        for (action, seed) in actions {
            match action {
                0..8 => {
                    let query = query(seed % 30);
                    let current = |table, row| {
                        let fresh = || weights(table, row, number);
                        as_stored(row_type, &rows.get(&(table, row)).cloned().unwrap_or_else(fresh))
                    };
                    prop_assert_eq!(ask(&engine, &query), plainly(&query, current));
                }
                8 => {
                    let table = (seed % 4) as usize;
                    let ids: Vec<u64> = (0..3).map(|n| rng::draw(seed, n) % TABLES[table].1).collect();
                    let values: Vec<Vec<f32>> = ids.iter().map(|&id| weights(table, id, seed)).collect();
                    engine.update(table, &ids, &bytes(&values.concat())).unwrap();
                    rows.extend(ids.iter().map(|&id| (table, id)).zip(values));
                }
                9 => engine.flush().unwrap(),
                10 => {
                    before = Some((number, std::mem::take(&mut rows)));
                    number = seed % 1000 + 2;
                    load(&engine, number, warm);
                }
                // Loading a version takes the place of the one before; rolling back exchanges the two.
                _ => {
                    if let Some(other) = before.take() {
                        engine.roll_back(warm).unwrap();
                        before = Some((number, std::mem::take(&mut rows)));
                        (number, rows) = other;
                    } else {
                        prop_assert_eq!(engine.roll_back(warm).unwrap_err().kind(), ErrorKind::Config);
                    }
                }
            }
            let stats = engine.stats();
            prop_assert!(stats.cached_bytes <= stats.memory.row_cache_bytes + stats.memory.pooled_bytes + stats.memory.update_bytes);
            let parts = [
                stats.memory.fixed_bytes, stats.memory.index_map_bytes, stats.memory.buffer_bytes,
                stats.memory.update_bytes, stats.memory.pooled_bytes, stats.memory.row_cache_bytes,
            ];
            prop_assert_eq!(parts.iter().sum::<u64>(), total_bytes);
        }
    }
}

#[test]
fn caches_are_used_and_counted() {
    let engine = engine(Setup { total_bytes: 200_000, ..SETUP });
    load(&engine, 1, false);
    for round in 0..3 {
        for seed in 0..30 {
            ask(&engine, &query(seed));
        }
        let stats = engine.stats();
        let misses = stats.caches.rows - stats.caches.row_hits;
        assert!(stats.traffic.reads <= misses && stats.traffic.bus_bytes >= stats.traffic.asked_bytes);
        if round > 0 {
            assert!(stats.caches.list_hits > 0 && stats.caches.row_hits > stats.caches.rows / 4, "{:?}", stats.caches);
        }
        assert_eq!(stats.traffic.written_blocks, 0, "clean rows are never written");
        assert_eq!(stats.devices[0].counters.reads, stats.traffic.reads, "the device saw the same reads");
        assert_eq!(stats.devices[0].counters.read_bytes, stats.traffic.bus_bytes);
    }
}

/// Each update writes one value into all rows of a table, so that whoever sees a part of an update sees two values. A reader notes the
/// last acknowledged update before it asks: nothing older may come back. A refresh does the same to all tables.
#[test]
fn readers_see_whole_updates_and_none_that_is_stale() {
    let engine = engine(Setup { update_bytes: 40_000, total_bytes: 200_000, ..SETUP });
    let value = |number: u64| vec![number as f32; TABLES[0].0];
    let rows: Vec<u64> = (0..16).collect();
    load(&engine, 1, false);
    let put =
        |number: u64| engine.update(0, &rows, &bytes(&rows.iter().flat_map(|_| value(number)).collect::<Vec<_>>()));
    put(0).unwrap();
    let (acknowledged, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for reader in 0..3u64 {
            let (engine, acknowledged, is_over, failures) = (&engine, &acknowledged, &is_over, &failures);
            scope.spawn(move || {
                let mut asked = 0;
                while !is_over.load(Ordering::Acquire) || asked < 50 {
                    let mut query: Query = TABLES.iter().map(|_| (vec![], vec![0])).collect();
                    // Bags of a row each, and one that is long enough for a pooled result.
                    let first = (rng::draw(reader, asked) % 8) as i64;
                    query[0] = (vec![first, first + 1, first + 2, first + 3, first + 4, first + 5], vec![0, 1, 2]);
                    query[3] = (vec![3, 4], vec![0]);
                    let least = acknowledged.load(Ordering::Acquire);
                    let out: Vec<f32> = ask(engine, &query).into_iter().map(f32::from_bits).collect();
                    let seen = [out[0], out[20], out[40] / 4.0];
                    if seen.iter().any(|&one| one.to_bits() != seen[0].to_bits()) || seen[0] < least as f32 {
                        failures.lock().unwrap().push(format!("{seen:?} after {least}"));
                        return;
                    }
                    asked += 1;
                }
            });
        }
        for number in 1..200 {
            put(number).unwrap();
            acknowledged.store(number, Ordering::Release);
            if number % 3 == 0 {
                engine.flush().unwrap();
            }
        }
        is_over.store(true, Ordering::Release);
    });
    assert_eq!(failures.into_inner().unwrap(), Vec::<String>::new());
}

#[test]
fn a_query_keeps_its_version_until_its_end() {
    let engine = engine(SETUP);
    load(&engine, 1, false);
    let (old, new) = (query(3), query(4));
    let views: Vec<(&[i64], &[i64])> = old.iter().map(|(ids, starts)| (&ids[..], &starts[..])).collect();
    let lookup = engine.begin(&views).unwrap();
    let mut out = vec![0.0; lookup.outputs().iter().zip(TABLES).map(|(bags, (columns, ..))| bags * columns).sum()];
    load(&engine, 2, true);
    engine.update(0, &[0, 1, 2], &bytes(&vec![5.0; 60])).unwrap();
    let changed = |table, row| if table == 0 && row < 3 { vec![5.0; 20] } else { weights(table, row, 2) };
    assert_eq!(ask(&engine, &new), plainly(&new, changed));
    lookup.pool_memory(&mut out).unwrap();
    lookup.finish(&mut out).unwrap();
    let found: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
    assert_eq!(found, plainly(&old, |table, row| weights(table, row, 1)));
    assert_eq!(ask(&engine, &old), plainly(&old, changed), "what the old query read is not cached for the new version");
    engine.roll_back(false).unwrap();
    assert_eq!(
        ask(&engine, &new),
        plainly(&new, |table, row| weights(table, row, 1)),
        "the update was of the other version"
    );
}

/// What the caches had of a row is gone when it has its new place.
#[test]
fn caches_forget_rows_that_were_updated() {
    let engine = engine(Setup { total_bytes: 400_000, ..SETUP });
    load(&engine, 1, false);
    for table in 0..4 {
        let mut query: Query = TABLES.iter().map(|_| (vec![], vec![0])).collect();
        query[table] = (vec![1, 2, 3, 4, 5], vec![0, 1]);
        ask(&engine, &query);
        ask(&engine, &query);
        let columns = TABLES[table].0;
        engine.update(table, &[1, 3], &bytes(&vec![9.0; 2 * columns])).unwrap();
        engine.flush().unwrap();
        let new =
            |of, row| if of == table && (row == 1 || row == 3) { vec![9.0; columns] } else { weights(of, row, 1) };
        assert_eq!(ask(&engine, &query), plainly(&query, new), "table {table}");
    }
}

/// Rows in memory are changed in place: not before queries that must not see it have ended.
#[test]
fn an_update_waits_for_queries_that_began_before() {
    let engine = engine(SETUP);
    load(&engine, 1, false);
    let query: Query = vec![(vec![], vec![0]), (vec![], vec![0]), (vec![], vec![0]), (vec![1, 2], vec![0])];
    let views: Vec<(&[i64], &[i64])> = query.iter().map(|(ids, starts)| (&ids[..], &starts[..])).collect();
    let lookup = engine.begin(&views).unwrap();
    engine.update(3, &[1, 2], &bytes(&[9.0; 16])).unwrap();
    let is_flushed = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            engine.flush().unwrap();
            is_flushed.store(true, Ordering::Release);
        });
        // Time enough for a flush that does not wait.
        for _ in 0..20_000 {
            if is_flushed.load(Ordering::Acquire) {
                break;
            }
            thread::yield_now();
        }
        let mut out = vec![0.0; lookup.outputs().iter().zip(TABLES).map(|(bags, (columns, ..))| bags * columns).sum()];
        lookup.pool_memory(&mut out).unwrap();
        lookup.finish(&mut out).unwrap();
        let found: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
        assert_eq!(found, plainly(&query, |table, row| weights(table, row, 1)));
    });
    assert_eq!(engine.stats().updated_rows, 0);
    assert_eq!(ask(&engine, &query), plainly(&query, |_, _| vec![9.0; 8]));
}

#[test]
fn of_two_versions_that_are_begun_the_later_one_is_loaded() {
    let engine = engine(SETUP);
    let first = engine.new_version().unwrap();
    load(&engine, 1, false);
    let refused = engine.load(&first, 3, RowType::Fp32, &[]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    assert_eq!(engine.commit(&first, false).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(ask(&engine, &query(1)), plainly(&query(1), |table, row| weights(table, row, 1)));
}

#[test]
fn a_warm_hand_over_keeps_the_cache() {
    let hits = |warm| {
        let engine = engine(Setup { total_bytes: 400_000, ..SETUP });
        load(&engine, 1, false);
        (0..30).for_each(|seed| drop(ask(&engine, &query(seed))));
        load(&engine, 2, warm);
        let before = engine.stats().caches;
        (0..30).for_each(|seed| drop(ask(&engine, &query(seed))));
        let after = engine.stats().caches;
        (after.row_hits - before.row_hits) as f64 / (after.rows - before.rows) as f64
    };
    let (cold, warm) = (hits(false), hits(true));
    assert!(warm > cold + 0.1, "{warm} of the rows were cached, {cold} without");
}

#[test]
fn wrong_queries_are_refused_and_others_go_on() {
    let engine = engine(Setup { versions: 1, ..SETUP });
    let good = query(1);
    let begin = |query: &Query| {
        let views: Vec<(&[i64], &[i64])> = query.iter().map(|(ids, starts)| (&ids[..], &starts[..])).collect();
        engine.begin(&views).map(|_| ()).map_err(|error| (error.kind(), error.to_string()))
    };
    assert_eq!(begin(&good).unwrap_err().0, ErrorKind::Closed, "before a version was committed");
    load(&engine, 1, false);
    let with = |table: usize, ids: &[i64], starts: &[i64]| {
        let mut query = good.clone();
        query[table] = (ids.to_vec(), starts.to_vec());
        query
    };
    let wrong = [
        with(1, &[200], &[0]),
        with(0, &[-1], &[0]),
        with(2, &[1, 2], &[1]),
        with(3, &[1], &[0, 2]),
        with(0, &[1], &[]),
    ];
    for query in wrong.iter().chain([&good[..3].to_vec()]) {
        assert_eq!(begin(query).unwrap_err().0, ErrorKind::Input);
    }
    assert!(begin(&wrong[0]).unwrap_err().1.contains("table-1"));
    assert_eq!(ask(&engine, &good), plainly(&good, |table, row| weights(table, row, 1)));
    assert_eq!(engine.new_version().err().unwrap().kind(), ErrorKind::Config, "there is room for one version");
    assert_eq!(engine.update(9, &[], &[]).unwrap_err().kind(), ErrorKind::Input);
    assert_eq!(engine.update(0, &[300], &bytes(&[0.0; 20])).unwrap_err().kind(), ErrorKind::Input);
    assert_eq!(engine.update(0, &[1], &[0; 4]).unwrap_err().kind(), ErrorKind::Input);
    let many: Vec<u64> = (0..299).collect();
    assert_eq!(engine.update(0, &many, &vec![0; 299 * 80]).unwrap_err().kind(), ErrorKind::Capacity);
}

/// One query at a time, far apart: the simulation makes the decisions of the engine.
#[test]
fn a_simulation_reads_what_the_engine_reads() {
    let laws: Vec<Value> = TABLES
        .iter()
        .map(|&(_, rows, _)| json!({"rows": rows, "is_user": true, "ids_per_list": 4, "exponent": 1.0}))
        .collect();
    let host = json!({"query_ns": 1000, "probe_ps": 1000, "row_ps": 1000, "byte_ps": 10, "dequantise_ps": 10, "submit_ps": 100,
        "complete_ps": 100, "fault_ps": 100, "lower_ns": 1000, "upper_ns": 1000});
    let queries = json!({"generated": {"tables": laws, "users": 40, "user_exponent": 0.5, "items": 1, "item_exponent": 0.0,
        "candidates": 1, "list_life_queries": 0, "seed": 5}});
    for is_sub_block in [false, true] {
        let setup = Setup { versions: 1, is_sub_block, ..SETUP };
        let config = json!({"serve": serve_json(setup), "host": host, "threads": 1, "is_overlapped": true, "is_mapped": false, "versions": 1,
            "queries": queries, "writes": {"updates_per_s": 0, "nbytes": 512}, "faults": {}, "seed": 1});
        let mut simulation = Simulation::new(serde_json::from_value::<SimulationConfig>(config).unwrap()).unwrap();
        let found = simulation.run(&Load { queries_per_s: 10.0, first_query: 0, queries: 500, give_up_ns: 0 }).unwrap();
        let engine = engine(setup);
        load(&engine, 1, false);
        for number in 0..500 {
            ask(&engine, &simulation.query(number));
        }
        let stats = engine.stats();
        assert_eq!(found.caches, stats.caches);
        assert!(found.caches.list_hits > 0 && found.caches.row_hits > 0);
        let traffic = (stats.traffic.reads, stats.traffic.asked_bytes, stats.traffic.bus_bytes);
        assert_eq!((found.reads.reads, found.reads.asked_bytes, found.reads.bus_bytes), traffic);
    }
}
