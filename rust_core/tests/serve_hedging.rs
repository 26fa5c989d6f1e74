//! Reads that take long are asked of a second device, too: in emulated time, and of real files on two devices.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tiermem_core::backend::probe_io_uring;
use tiermem_core::embedding::RowType;
use tiermem_core::serve::{Engine, EngineConfig};
use tiermem_core::{Error, ErrorKind, rng};

const NAND: &str = include_str!("../../python/tiermem/emulator_configs/devices/nand-pm9a3.toml");
const ROWS: u64 = 4096;
const COLUMNS: usize = 32;
const IDS: u64 = 20;

/// An engine with one table on two devices, not cached, every other key as given.
fn config(device: &Value, engine: &Value) -> Value {
    let mut spec: Value = toml::from_str(NAND).unwrap();
    spec.as_object_mut().unwrap().remove("published");
    let mut config = json!({
        "serve": {
            "tables": [{"name": "t", "ids": ROWS, "rows": ROWS, "columns": COLUMNS, "row_type": "fp32",
                        "placement": "uncached"}],
            "device": {"spec": spec, "replicas": 2, "block_bytes": 512, "is_sub_block": false,
                       "limits": {"per_table": 64, "total": 64}, "hedge_after_ns": null},
            "memory": {"total_bytes": 4_000_000, "pooled_share": 0.0, "update_bytes": 0, "dense_row_bytes_max": 255,
                       "policy": "lru", "pooled_ids_min": 1000, "pooled_match": "in_order"},
        },
        "backend": {"engine": "ram"}, "time": "virtual", "versions": 1, "seed": 3,
    });
    let put = |into: &mut Value, keys: &Value| {
        for (key, value) in keys.as_object().unwrap() {
            into[key] = value.clone();
        }
    };
    put(&mut config["serve"]["device"], device);
    put(&mut config, engine);
    config
}

fn weight(row: u64) -> f32 {
    row as f32
}

fn open(config: Value) -> Result<Arc<Engine>, Error> {
    Engine::open(serde_json::from_value::<EngineConfig>(config).unwrap()).map(Arc::new)
}

/// Opens and loads it with `weight` of each row in all of its columns.
fn loaded(config: Value, weight: impl Fn(u64) -> f32) -> Arc<Engine> {
    let engine = open(config).unwrap();
    let version = engine.new_version().unwrap();
    let per_load = engine.rows_per_load(0).unwrap();
    for first in (0..ROWS).step_by(per_load as usize) {
        let rows = first..(first + per_load).min(ROWS);
        let values: Vec<u8> = rows.flat_map(|row| weight(row).to_le_bytes().repeat(COLUMNS)).collect();
        engine.load(&version, 0, RowType::Fp32, &values).unwrap();
    }
    engine.commit(&version, false).unwrap();
    engine
}

fn ids_of(query: u64, ids: u64) -> Vec<i64> {
    (0..ids).map(|n| (rng::draw(rng::stream(7, query), n) % ROWS) as i64).collect()
}

fn ask(engine: &Arc<Engine>, ids: &[i64]) -> Result<Vec<f32>, Error> {
    let mut out = vec![0.0; COLUMNS];
    engine.begin(&[(ids, &[0])])?.finish(&mut out)?;
    Ok(out)
}

/// Asks queries one after the other; gives the time that each took, in order of length.
fn ask_all(engine: &Arc<Engine>, queries: u64) -> Vec<u64> {
    let time = |query| {
        let ids = ids_of(query, IDS);
        let began_ns = engine.now_ns();
        let sum: f32 = ids.iter().map(|&id| weight(id as u64)).sum();
        assert_eq!(ask(engine, &ids).unwrap(), [sum; COLUMNS], "whole numbers, so that their order does not matter");
        engine.now_ns() - began_ns
    };
    let mut times: Vec<u64> = (0..queries).map(time).collect();
    times.sort_unstable();
    times
}

#[test]
fn stalls_of_one_device_are_not_waited_for() {
    // Reads take 3 ms longer for a tenth of the time, on each device at times of its own.
    let stalls = json!({"faults": {"seed": 5, "storm_every_ns": 20_000_000, "storm_duration_ns": 2_000_000,
                                   "storm_extra_ns": 3_000_000}});
    let plain = loaded(config(&json!({}), &stalls), weight);
    let hedged = loaded(config(&json!({"hedge_after_ns": 300_000}), &stalls), weight);
    let (plain_ns, hedged_ns) = (ask_all(&plain, 2000), ask_all(&hedged, 2000));
    assert!(hedged_ns[1980] * 10 < plain_ns[1980] * 7, "p99: {} ns, {} ns without", hedged_ns[1980], plain_ns[1980]);
    let (plain, hedged) = (plain.stats(), hedged.stats());
    assert_eq!((plain.traffic.hedged, plain.traffic.hedged_won), (0, 0));
    let (reads, copies) = (hedged.traffic.reads, hedged.traffic.hedged);
    assert!(0 < hedged.traffic.hedged_won && hedged.traffic.hedged_won <= copies && copies < reads / 4);
    assert_eq!(reads, plain.traffic.reads);
    assert_eq!(hedged.traffic.bus_bytes, plain.traffic.bus_bytes + 512 * copies);
    let of_devices: u64 = hedged.devices.iter().map(|device| device.counters.reads).sum();
    assert!((reads + copies).abs_diff(of_devices) <= 64, "all but those that are still under way");
}

#[test]
fn second_copies_have_no_place_beyond_the_limits() {
    let limits = json!({"hedge_after_ns": 0, "limits": {"per_table": 1, "total": 1}});
    let engine = loaded(config(&limits, &json!({})), weight);
    ask_all(&engine, 50);
    assert_eq!(engine.stats().traffic.hedged, 0, "the first copy has the only place");
    let engine = loaded(config(&json!({"hedge_after_ns": 0}), &json!({})), weight);
    ask_all(&engine, 50);
    let traffic = engine.stats().traffic;
    assert!(traffic.hedged * 10 > traffic.reads * 9, "places of copies that were not first are given back");
}

#[test]
fn of_two_copies_the_one_that_does_not_fail_counts() {
    // Nothing is stored, so that no block becomes good; what is not stored is zeros.
    let faults = json!({"faults": {"seed": 2, "latent_error_share": 0.2, "dropped_write_probability": 1.0}});
    let failures = |device: &Value| {
        let engine = loaded(config(device, &faults), |_| 0.0);
        let failed = |query: &u64| match ask(&engine, &ids_of(*query, 1)) {
            Ok(row) => {
                assert_eq!(row, [0.0; COLUMNS]);
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(error.to_string().contains("tier="), "{error}");
                true
            }
        };
        (0..1000u64).filter(failed).count()
    };
    let (one, both) = (failures(&json!({"replicas": 1})), failures(&json!({"hedge_after_ns": 0})));
    // A fifth of the blocks is bad on one device, a fifth of these on both.
    assert!((150..250).contains(&one) && (15..80).contains(&both), "{one} failed with one copy, {both} with two");
}

/// What two directories on two devices can be here.
fn two_devices() -> Option<(tempfile::TempDir, tempfile::TempDir)> {
    use std::os::unix::fs::MetadataExt;
    // The build is on a drive; what is temporary may be in memory.
    let first = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let second = tempfile::tempdir_in("/dev/shm").ok()?;
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    (probe_io_uring().is_ok() && device(first.path()) != device(second.path())).then_some((first, second))
}

#[test]
fn real_files_on_two_devices() {
    let Some((first, second)) = two_devices() else { return };
    let engine = json!({"time": "real", "backend": {"engine": "io_uring", "directory": first.path()},
                        "replica_directory": second.path()});
    for hedge_after_ns in [0u64, 3_600_000_000_000] {
        let engine = loaded(config(&json!({"hedge_after_ns": hedge_after_ns}), &engine), weight);
        ask_all(&engine, 100);
        let stats = engine.stats();
        let traffic = stats.traffic;
        assert!(traffic.hedged_won <= traffic.hedged && traffic.hedged <= traffic.reads);
        assert!(hedge_after_ns == 0 || traffic.hedged == 0, "nothing takes an hour");
        // What comes out of the page cache is here at once.
        assert!(hedge_after_ns > 0 || traffic.hedged > 0 || !stats.backend.direct, "nothing takes no time");
    }
}

#[test]
fn hedging_where_it_cannot_work_is_refused() {
    let one = tempfile::tempdir().unwrap();
    let refused = |device: Value, engine: Value| {
        let error = open(config(&device, &engine)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        error.to_string()
    };
    let real = |engine: &str| json!({"time": "real", "backend": {"engine": engine, "directory": one.path()}});
    assert!(refused(json!({"replicas": 1, "hedge_after_ns": 1}), json!({})).contains("replicas = 2"));
    assert!(refused(json!({}), real("file")).contains("replica_directory"), "one device");
    assert!(refused(json!({}), json!({"time": "real"})).contains("replica_directory"), "memory");
    if let Some((first, second)) = two_devices() {
        let files = json!({"time": "real", "backend": {"engine": "file", "directory": first.path()},
                           "replica_directory": second.path()});
        assert!(refused(json!({"hedge_after_ns": 1}), files).contains("io_uring"));
    }
}
