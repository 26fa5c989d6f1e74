//! What an engine does when devices fail, when updates do not stop, and when what is asked for cannot be.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::float_cmp, reason = "one row of a list, whose sum has its bits")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};
use tiermem_core::embedding::RowType;
use tiermem_core::serve::{Engine, EngineConfig, Load, Simulation, SimulationConfig};
use tiermem_core::{Error, ErrorKind};

const OPTANE: &str = include_str!("../../python/tiermem/emulator_configs/devices/optane-p5800x.toml");
const ROWS: u64 = 2048;
const COLUMNS: usize = 32;
const ROW_BYTES: u64 = 4 * COLUMNS as u64;

fn device() -> Value {
    let mut spec: Value = toml::from_str(OPTANE).unwrap();
    spec.as_object_mut().unwrap().remove("published");
    spec
}

fn table(name: &str, placement: &str) -> Value {
    json!({"name": name, "ids": ROWS, "rows": ROWS, "columns": COLUMNS, "row_type": "fp32", "placement": placement})
}

/// Two tables on the device and one in memory.
fn serve(replicas: u32, update_bytes: u64) -> Value {
    json!({
        "tables": [table("first", "cached"), table("second", "uncached"), table("third", "fixed")],
        "device": {"spec": device(), "replicas": replicas, "block_bytes": 512, "is_sub_block": false,
                   "limits": {"per_table": 64, "total": 64}, "hedge_after_ns": null},
        "memory": {"total_bytes": 2_000_000, "pooled_share": 0.1, "update_bytes": update_bytes,
                   "dense_row_bytes_max": 255, "policy": "lru", "pooled_ids_min": 2, "pooled_match": "in_order"},
    })
}

fn open(replicas: u32, update_bytes: u64, faults: &Value) -> Arc<Engine> {
    let config = json!({"serve": serve(replicas, update_bytes), "backend": {"engine": "ram"}, "time": "virtual",
                        "versions": 2, "seed": 1, "faults": faults});
    Arc::new(Engine::open(serde_json::from_value::<EngineConfig>(config).unwrap()).unwrap())
}

fn row(value: f32) -> Vec<u8> {
    value.to_le_bytes().repeat(COLUMNS)
}

/// Loads rows whose values are all their number and a version's.
fn load(engine: &Engine, version: f32) -> Result<u64, Error> {
    let new = engine.new_version()?;
    for table in 0..3 {
        let per_load = engine.rows_per_load(table)?;
        for first in (0..ROWS).step_by(per_load as usize) {
            let rows = first..(first + per_load).min(ROWS);
            let values: Vec<u8> = rows.flat_map(|id| row(id as f32 + version)).collect();
            engine.load(&new, table, RowType::Fp32, &values)?;
        }
    }
    engine.commit(&new, true)
}

fn ask(engine: &Arc<Engine>, ids: [&[i64]; 3]) -> Result<[f32; 3], Error> {
    let lookup = engine.begin(&ids.map(|ids| (ids, &[0][..])))?;
    let mut out = vec![0.0; 3 * COLUMNS];
    lookup.pool_memory(&mut out)?;
    lookup.finish(&mut out)?;
    Ok([out[0], out[COLUMNS], out[2 * COLUMNS]])
}

/// Of the first table.
fn ask_one(engine: &Arc<Engine>, id: i64) -> Result<f32, Error> {
    Ok(ask(engine, [&[id], &[], &[]])?[0])
}

#[test]
fn versions_change_while_queries_that_are_older_than_updates_go_on() {
    let engine = open(1, 50_000, &json!({}));
    load(&engine, 0.0).unwrap();
    let old = engine.begin(&[(&[7][..], &[0][..]), (&[7], &[0]), (&[7], &[0])]).unwrap();
    for table in 0..3 {
        engine.update(table, &[7], &row(0.5)).unwrap();
    }
    let sevens: [&[i64]; 3] = [&[7], &[7], &[7]];
    assert_eq!(ask(&engine, sevens).unwrap(), [0.5; 3]);
    // Neither waits for the query of this very thread.
    load(&engine, 1000.0).unwrap();
    assert_eq!(ask(&engine, sevens).unwrap(), [1007.0; 3]);
    engine.update(0, &[7], &row(0.25)).unwrap();
    engine.roll_back(true).unwrap();
    assert_eq!(
        ask(&engine, sevens).unwrap(),
        [0.5; 3],
        "updates that were not yet in their place came back with their version"
    );
    let mut out = vec![0.0; 3 * COLUMNS];
    old.pool_memory(&mut out).unwrap();
    old.finish(&mut out).unwrap();
    assert_eq!([out[0], out[COLUMNS], out[2 * COLUMNS]], [7.0; 3], "the old query saw none of this");
    assert_eq!(ask(&engine, sevens).unwrap(), [0.5; 3]);
    engine.flush().unwrap();
    assert_eq!(engine.stats().updated_rows, 0);
    assert_eq!(ask(&engine, sevens).unwrap(), [0.5; 3]);
    engine.roll_back(true).unwrap();
    assert_eq!(ask(&engine, sevens).unwrap(), [0.25, 1007.0, 1007.0]);
}

#[test]
fn versions_change_while_a_flush_waits_for_a_query() {
    let engine = open(1, 50_000, &json!({}));
    load(&engine, 0.0).unwrap();
    load(&engine, 1000.0).unwrap();
    let old = engine.begin(&[(&[7][..], &[0][..]), (&[7], &[0]), (&[7], &[0])]).unwrap();
    engine.update(0, &[7], &row(0.5)).unwrap();
    let is_flushed = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            engine.flush().unwrap();
            is_flushed.store(true, Ordering::Release);
        });
        // Time enough for a flush that does not wait.
        (0..1000).for_each(|_| thread::yield_now());
        engine.roll_back(false).unwrap();
        engine.roll_back(false).unwrap();
        assert!(!is_flushed.load(Ordering::Acquire), "it waits for the query");
        assert_eq!(ask(&engine, [&[7], &[], &[]]).unwrap()[0], 0.5);
        drop(old);
    });
    assert_eq!(engine.stats().updated_rows, 0);
    assert_eq!(ask(&engine, [&[7], &[], &[]]).unwrap()[0], 0.5);
}

#[test]
fn versions_change_while_updates_do_not_stop() {
    let engine = open(1, 500_000, &json!({}));
    load(&engine, 0.0).unwrap();
    let (is_over, updates) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                let number = updates.fetch_add(1, Ordering::AcqRel);
                engine.update(0, &[number % 50], &row(1.0)).unwrap();
            }
        });
        for version in 1..6 {
            load(&engine, version as f32).unwrap();
            engine.roll_back(false).unwrap();
        }
        is_over.store(true, Ordering::Release);
    });
    assert!(updates.into_inner() > 0);
}

#[test]
fn what_cannot_be_written_is_served_from_memory_and_the_rest_goes_on() {
    // Both versions fill two tables each; then the device takes no more.
    let loaded_bytes = 2 * 2 * ROWS * ROW_BYTES;
    let engine = open(1, 2_000, &json!({"read_only_after_bytes": loaded_bytes}));
    load(&engine, 0.0).unwrap();
    load(&engine, 1000.0).unwrap();
    for table in 0..3 {
        engine.update(table, &[7], &row(0.5)).unwrap();
    }
    let failed = engine.flush().unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Io);
    assert!(failed.to_string().contains("first"), "names the table: {failed}");
    let stats = engine.stats();
    assert_eq!(
        (stats.updated_rows, stats.traffic.written_blocks),
        (2, 0),
        "the row of the table in memory is in its place"
    );
    assert_eq!(ask(&engine, [&[7], &[7], &[7]]).unwrap(), [0.5; 3]);
    // Room goes on being made for tables in memory, and is refused for others when there is none.
    let refused = (0..100).map(|id| engine.update(1, &[id], &row(0.5))).find_map(Result::err).unwrap();
    assert_eq!(refused.kind(), ErrorKind::Io);
    engine.roll_back(true).unwrap();
    assert_eq!(ask(&engine, [&[7], &[7], &[7]]).unwrap(), [7.0; 3], "rolling back writes nothing");
}

/// Nothing is stored, so that no block becomes good; what is not stored is zeros.
fn bad_blocks() -> Value {
    json!({"seed": 3, "latent_error_share": 0.2, "dropped_write_probability": 1.0})
}

#[test]
fn a_query_that_failed_stays_so_and_nothing_of_it_is_kept() {
    let engine = open(1, 0, &bad_blocks());
    load(&engine, 1.0).unwrap();
    let bad = (0..ROWS as i64).find(|&id| ask_one(&engine, id).is_err()).unwrap();
    for pair in [vec![bad], vec![bad, bad]] {
        let mut lookup = engine.begin(&[(&pair[..], &[0][..]), (&[], &[0]), (&[], &[0])]).unwrap();
        assert_eq!(lookup.wait().unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(lookup.wait().unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(lookup.finish(&mut [0.0; 3 * COLUMNS]).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(ask(&engine, [&pair, &[], &[]]).unwrap_err().kind(), ErrorKind::Io);
    }
    assert_eq!(engine.stats().pooled_results, 0);
}

#[test]
fn of_two_devices_the_other_is_read_when_one_fails() {
    let failures = |replicas| {
        let engine = open(replicas, 0, &bad_blocks());
        load(&engine, 0.0).unwrap();
        let failed = (0..ROWS as i64).filter(|&id| ask_one(&engine, id).is_err()).count();
        (failed as f64 / ROWS as f64, engine.stats().traffic.failed_over)
    };
    let ((alone, none), (both, some)) = (failures(1), failures(2));
    assert!((0.1..0.3).contains(&alone) && none == 0, "{alone}");
    assert!(both < 0.1 && some > 0, "a fifth of the blocks is bad on one device, a fifth of these on both: {both}");
}

/// Reads that go to a device together fail together, and each of them can be had of one device or the other.
#[test]
fn of_many_reads_only_those_count_that_both_devices_fail() {
    let engine = open(2, 0, &bad_blocks());
    load(&engine, 0.0).unwrap();
    // This table is not cached.
    let good: Vec<i64> = (0..ROWS as i64).filter(|&id| ask(&engine, [&[], &[id], &[]]).is_ok()).collect();
    let before = engine.stats().traffic.failed_over;
    for ids in good.chunks(60) {
        ask(&engine, [&[], ids, &[]]).unwrap();
    }
    assert!(engine.stats().traffic.failed_over > before);
}

#[test]
fn what_can_be_read_is_warm_and_what_can_be_written_is_in_its_place_whatever_its_neighbours_are() {
    let engine = open(1, 500_000, &bad_blocks());
    load(&engine, 0.0).unwrap();
    let asked = (0..ROWS as i64).filter(|&id| ask_one(&engine, id).is_ok()).count();
    let cached = engine.stats().cached_rows;
    assert!(cached > asked as u64 / 2);
    load(&engine, 0.0).unwrap();
    let stats = engine.stats();
    assert_eq!(stats.cached_rows + stats.traffic.cold_rows, cached);
    let cold = stats.traffic.cold_rows as f64 / cached as f64;
    assert!((0.1..0.3).contains(&cold), "a fifth of the blocks is bad: {cold}");
    let all: Vec<u64> = (0..1500).collect();
    engine.update(0, &all, &vec![0; all.len() * ROW_BYTES as usize]).unwrap();
    assert_eq!(engine.flush().unwrap_err().kind(), ErrorKind::Io);
    let waiting = engine.stats().updated_rows as f64 / all.len() as f64;
    assert!((0.1..0.3).contains(&waiting), "only what is in bad blocks waits: {waiting}");
}

#[test]
fn rows_of_other_ids_are_not_warmed() {
    let mut serve = serve(1, 0);
    serve["tables"] = json!([{"name": "t", "ids": ROWS, "rows": ROWS / 2, "columns": COLUMNS, "row_type": "fp32",
                              "placement": "cached"}]);
    let config = json!({"serve": serve, "backend": {"engine": "ram"}, "time": "virtual", "versions": 2, "seed": 1});
    let engine = Arc::new(Engine::open(serde_json::from_value::<EngineConfig>(config).unwrap()).unwrap());
    let load = |kept: i32| {
        let new = engine.new_version().unwrap();
        let values: Vec<u8> = (0..ROWS / 2).flat_map(|row_of_id| row(row_of_id as f32)).collect();
        engine.load(&new, 0, RowType::Fp32, &values).unwrap();
        let map = (0..ROWS as i32).map(|id| if id % 2 == kept { id / 2 } else { -1 }).collect();
        engine.set_index_map(&new, 0, map).unwrap();
        engine.commit(&new, true).unwrap();
        let stats = engine.stats();
        (stats.cached_rows, stats.traffic.cold_rows)
    };
    load(0);
    let mut out = [0.0; COLUMNS];
    engine.begin(&[(&[0, 2, 4, 6], &[0])]).unwrap().finish(&mut out).unwrap();
    assert_eq!(load(0), (4, 0));
    assert_eq!(load(1), (0, 4));
}

#[test]
fn rows_that_were_not_written_are_not_loaded() {
    let engine = open(1, 0, &json!({"read_only_after_bytes": 1}));
    let new = engine.new_version().unwrap();
    let all: Vec<u8> = (0..ROWS).flat_map(|id| row(id as f32)).collect();
    assert_eq!(engine.rows_per_load(0).unwrap().min(ROWS), ROWS, "a table is loaded in one go");
    engine.load(&new, 0, RowType::Fp32, &all).unwrap();
    assert_eq!(engine.load(&new, 1, RowType::Fp32, &all).unwrap_err().kind(), ErrorKind::Io);
    engine.load(&new, 2, RowType::Fp32, &all).unwrap();
    let refused = engine.commit(&new, false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Input);
    assert!(refused.to_string().contains("table=second"), "{refused}");
}

/// A device with more rows than any memory.
fn simulation(tables: &Value, update_bytes: u64, updates_per_s: u64) -> Result<Simulation, Error> {
    let mut serve = serve(1, update_bytes);
    serve["tables"] = tables.clone();
    let laws: Vec<Value> = tables
        .as_array()
        .unwrap()
        .iter()
        .map(|table| {
            json!({"rows": table["rows"], "is_user": true,
        "ids_per_list": 4, "exponent": 1.0})
        })
        .collect();
    let host = json!({"query_ns": 1000, "probe_ps": 1000, "row_ps": 1000, "byte_ps": 10, "dequantise_ps": 10,
        "submit_ps": 100, "complete_ps": 100, "fault_ps": 100, "lower_ns": 1000, "upper_ns": 1000});
    let queries = json!({"generated": {"tables": laws, "users": 40, "user_exponent": 0.5, "items": 1,
        "item_exponent": 0.0, "candidates": 1, "list_life_queries": 0, "seed": 5}});
    let config = json!({"serve": serve, "host": host, "threads": 1, "is_overlapped": true, "is_mapped": false,
        "versions": 1, "queries": queries, "writes": {"updates_per_s": updates_per_s, "nbytes": 512}, "faults": {},
        "seed": 1});
    Simulation::new(serde_json::from_value::<SimulationConfig>(config).unwrap())
}

#[test]
fn updates_cost_a_simulation_what_they_cost_an_engine() {
    let tables = json!([table("first", "cached"), table("second", "uncached"), table("third", "fixed")]);
    let load = Load { queries_per_s: 1000.0, first_query: 0, queries: 2_000, give_up_ns: 0 };
    let run = |updates_per_s| simulation(&tables, 20_000, updates_per_s).unwrap().run(&load).unwrap();
    let (still, changing) = (run(0), run(20_000));
    assert_eq!((still.caches.updated_rows, still.devices[0].counters.writes), (0, 0));
    assert!(changing.caches.updated_rows > 0, "some rows are served from where they wait");
    let rate = |lists: u64, hits: u64| hits as f64 / lists as f64;
    let all = still.caches.lists;
    assert!(changing.caches.lists < all, "a list with a row that waits is not looked for");
    assert!(
        rate(all, changing.caches.list_hits) < rate(all, still.caches.list_hits) - 0.02,
        "and its result is forgotten"
    );
    let device = &changing.devices[0].counters;
    assert!(device.writes > 30_000 && device.reads > device.writes, "each update reads a block and writes it");
    assert_eq!(simulation(&tables, 10, 1).err().unwrap().kind(), ErrorKind::Capacity);
    simulation(&json!([table("third", "fixed")]), 10, 1).unwrap();
}

#[test]
fn what_is_too_large_is_an_error() {
    let sized = |rows: u64, columns: u64, placement: &str| json!([{"name": "t", "ids": rows, "rows": rows, "columns": columns, "row_type": "fp16", "placement": placement}]);
    for (tables, kind) in
        [(sized(1 << 36, 1 << 20, "cached"), ErrorKind::Config), (sized(1 << 33, 1, "fixed"), ErrorKind::Capacity)]
    {
        assert_eq!(simulation(&tables, 0, 0).err().unwrap().kind(), kind);
    }
    let mut serve = serve(1, 0);
    serve["tables"] = sized(1 << 30, 300, "cached");
    serve["memory"]["total_bytes"] = json!(1u64 << 55);
    serve["device"]["spec"]["capacity_bytes"] = json!(1u64 << 50);
    let config = json!({"serve": serve, "backend": {"engine": "ram"}, "time": "virtual", "versions": 1, "seed": 1});
    let refused = Engine::open(serde_json::from_value::<EngineConfig>(config).unwrap()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Capacity, "{refused}");
}
