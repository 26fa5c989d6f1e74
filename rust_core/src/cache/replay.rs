//! A stream of keys through a cache of keys: what hits and what does not.

use super::belady::{self, NEVER};
use super::policy::{Auto, Clock, Lfu, Lookahead, Lru, Policy, PolicyKind, Random, S3Fifo, Sieve, WINDOW_BATCHES_MAX};
use super::row_cache::{RowCache, check_capacity};
use crate::error::{Error, ErrorKind, Result};

/// One replay.
#[derive(Debug, Clone, Copy)]
pub struct Replay {
    /// Who decides.
    pub policy: PolicyKind,
    /// Rows that the cache holds.
    pub rows: usize,
    /// Batches that `lookahead` knows beyond the one that runs.
    pub window_batches: usize,
    /// Of `random`.
    pub seed: u64,
}

/// Replays keys in order; `visit(position, hit)` is called for each. `batch_ends` are the positions at which
/// batches end, ascending, the last one being the number of keys; `next_use` as in
/// [`replay_min`](belady::replay_min) is read by `min` alone.
///
/// # Errors
///
/// `Config` if the cache has no rows, or the window is longer than [`WINDOW_BATCHES_MAX`].
pub fn replay(
    config: &Replay,
    keys: &[u64],
    batch_ends: &[usize],
    next_use: &[u32],
    visit: impl FnMut(usize, bool),
) -> Result<()> {
    let rows = config.rows;
    check_capacity(rows)?;
    match config.policy {
        PolicyKind::Lru => run(rows, Lru::new(rows), keys, visit),
        PolicyKind::Lfu => run(rows, Lfu::new(rows), keys, visit),
        PolicyKind::Clock => run(rows, Clock::new(rows), keys, visit),
        PolicyKind::S3Fifo => run(rows, S3Fifo::new(rows), keys, visit),
        PolicyKind::Sieve => run(rows, Sieve::new(rows), keys, visit),
        PolicyKind::Auto => run(rows, Auto::new(rows), keys, visit),
        PolicyKind::Random => run(rows, Random::new(rows, config.seed), keys, visit),
        PolicyKind::Lookahead => run_ahead(config, keys, batch_ends, visit),
        PolicyKind::Min => {
            debug_assert!(next_use.len() == keys.len() && keys.len() < NEVER as usize);
            belady::replay_min(next_use, rows, visit);
            Ok(())
        }
    }
}

fn run<P: Policy>(rows: usize, policy: P, keys: &[u64], mut visit: impl FnMut(usize, bool)) -> Result<()> {
    let mut cache = RowCache::new(rows, policy)?;
    for (position, &key) in keys.iter().enumerate() {
        visit(position, cache.access(key).is_hit());
    }
    Ok(())
}

fn run_ahead(config: &Replay, keys: &[u64], batch_ends: &[usize], mut visit: impl FnMut(usize, bool)) -> Result<()> {
    // The batch that runs was announced too.
    if config.window_batches >= WINDOW_BATCHES_MAX {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "a window of {} batches is too long; {} at the most",
                config.window_batches,
                WINDOW_BATCHES_MAX - 1
            ),
        ));
    }
    let mut cache = RowCache::new(config.rows, Lookahead::new(config.rows))?;
    let starts = || std::iter::once(0).chain(batch_ends.iter().copied());
    let mut ahead = starts().zip(batch_ends.iter().copied());
    for batch in ahead.by_ref().take(config.window_batches) {
        cache.announce(&keys[batch.0..batch.1])?;
    }
    for (start, &end) in starts().zip(batch_ends) {
        if let Some(batch) = ahead.next() {
            cache.announce(&keys[batch.0..batch.1])?;
        }
        cache.begin_batch();
        for (place, &key) in keys[start..end].iter().enumerate() {
            visit(start + place, cache.access(key).is_hit());
        }
    }
    Ok(())
}
