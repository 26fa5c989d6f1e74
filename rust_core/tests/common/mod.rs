//! What the tests of the store share.
#![expect(unreachable_pub, reason = "each test binary compiles its own copy of this module")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod training;

use tiermem_core::backend::BackendConfig;
use tiermem_core::cache::PolicyKind;
use tiermem_core::device::{DeviceSpec, FaultSpec};
use tiermem_core::embedding::{Initialisation, OptimizerConfig, Rounding, RowType, TableConfig};
use tiermem_core::store::{Budget, ClockMode, HomeLayout, NonFinite, StoreConfig, TierConfig};

/// Seed of every store here.
pub const SEED: u64 = 11;

/// A tier in memory that imitates a shipped device.
pub fn tier(name: &str, device: &str, cache: Option<Budget>) -> TierConfig {
    let path = format!("{}/../emulator_configs/devices/{device}.toml", env!("CARGO_MANIFEST_DIR"));
    let device = DeviceSpec::from_toml(&std::fs::read_to_string(path).unwrap()).unwrap();
    TierConfig {
        name: name.into(),
        device,
        backend: BackendConfig::ram(),
        cache,
        policy: PolicyKind::Lru,
        layout: HomeLayout::InPlace,
        faults: FaultSpec::default(),
    }
}

/// A store of tables `(rows, dim)` on a virtual clock.
pub fn config(
    tables: &[(u64, usize)],
    tiers: Vec<TierConfig>,
    optimizer: OptimizerConfig,
    staging_bytes: u64,
) -> StoreConfig {
    let init = Initialisation::Uniform { bound: 0.1 };
    let table = |(n, &(rows, dim)): (usize, &(u64, usize))| TableConfig {
        name: format!("t{n}"),
        rows,
        dim,
        init,
        row_type: RowType::Fp32,
        rounding: Rounding::Nearest,
    };
    StoreConfig {
        tables: tables.iter().enumerate().map(table).collect(),
        tiers,
        parts: None,
        optimizer,
        staging_bytes,
        memory_limit_bytes: None,
        clock: ClockMode::Virtual,
        seed: SEED,
        non_finite_gradients: NonFinite::Pass,
        timeline: false,
        threads: 1,
        simd: None,
    }
}
