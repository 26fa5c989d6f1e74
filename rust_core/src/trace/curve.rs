//! Miss-ratio curves: what caches of given sizes do to a stream.
//!
//! On a whole stream the numbers are exact: lru from stack distances, all sizes in one pass; every other policy by
//! replay. On a sample of the rows at rate R they are estimates: a stack distance counts 1/R times (SHARDS:
//! Waldspurger, Park, Garthwaite, Ahmad, FAST 2015), a replay runs in a cache of R times the size (miniature
//! simulation, USENIX ATC 2017), and the accesses that the sample has too many or too few are taken for hits
//! (SHARDS-adj), since it is the hottest rows that a sample misses or catches.

use serde::Serialize;

use super::recency::RecencyStack;
use super::stream::{AccessStream, Sample};
use crate::cache::{Lfu, PolicyKind, Replay, RowCache, replay};
use crate::error::Result;

/// One cache of one size on one stream.
#[derive(Debug, Clone, Serialize)]
pub struct CurvePoint {
    /// Rows that the cache holds.
    pub rows: u64,
    /// Accesses of the stream; of all of it, if this is an estimate.
    pub accesses: u64,
    /// Hits among them.
    pub hits: u64,
    /// `hits / accesses`; 0 for an empty stream.
    pub hit_rate: f64,
    /// Hits among the second half of the accesses, divided by their number.
    pub hit_rate_second_half: f64,
    /// Bytes of the rows that missed.
    pub missed_row_bytes: u64,
    /// Bytes of the blocks that hold them; rows of one block that miss in one batch cost one read. `None` for
    /// estimates: of the rows of a block, a sample has one at the most.
    pub missed_block_bytes: Option<u64>,
    /// Share of the rows that was looked at; 1: exact.
    pub sample_rate: f64,
}

/// Counts of one replay, before they are made a point.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    hits: u64,
    late_hits: u64,
    missed_row_bytes: u64,
    missed_blocks: u64,
}

impl AccessStream {
    /// lru at each of these sizes, in one pass.
    ///
    /// # Errors
    ///
    /// `Config` if a size is not possible.
    pub fn lru_points(&self, sizes: &[u64]) -> Result<Vec<CurvePoint>> {
        for &rows in sizes {
            crate::cache::check_capacity(rows as usize)?;
        }
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|&position| sizes[position]);
        let rate = self.sample.map_or(1.0, |sample| sample.rate);
        let limits: Vec<f64> = order.iter().map(|&position| sizes[position] as f64 * rate).collect();
        // Level k: misses in the k smallest sizes and hits in the others. What is summed up are the levels.
        let mut levels = vec![Tally::default(); sizes.len() + 1];
        let mut stack = RecencyStack::new(self.distinct());
        let mut blocks = BlockLevels::new(self.block_count);
        let mut start = 0;
        for &end in &self.batch_ends {
            for position in start..end {
                let row = self.rows[position];
                let level = match stack.touch(row) {
                    Some(depth) => limits.partition_point(|&limit| f64::from(depth) >= limit),
                    None => sizes.len(),
                };
                levels[level].hits += 1;
                levels[level].late_hits += u64::from(self.is_late(position));
                levels[level].missed_row_bytes += u64::from(self.row_bytes[row as usize]);
                blocks.add(self.blocks[row as usize], level as u32);
            }
            blocks.end_batch(|level, count| levels[level as usize].missed_blocks += u64::from(count));
            start = end;
        }
        let mut points = vec![None; sizes.len()];
        for (place, &position) in order.iter().enumerate() {
            let sum = |levels: &[Tally], count: fn(&Tally) -> u64| levels.iter().map(count).sum();
            let (hit, missed) = levels.split_at(place + 1);
            let tally = Tally {
                hits: sum(hit, |level| level.hits),
                late_hits: sum(hit, |level| level.late_hits),
                missed_row_bytes: sum(missed, |level| level.missed_row_bytes),
                missed_blocks: sum(missed, |level| level.missed_blocks),
            };
            points[position] = Some(self.point(sizes[position], tally));
        }
        Ok(points.into_iter().flatten().collect())
    }

    /// Another policy at one size, by replay.
    ///
    /// # Errors
    ///
    /// Those of [`replay`].
    pub fn replay_point(&self, config: &Replay) -> Result<CurvePoint> {
        let mut tally = Tally::default();
        let mut stamps = vec![u32::MAX; self.block_count];
        let mut batch = 0usize;
        self.replay(config, |position, hit| {
            while position == self.batch_ends[batch] {
                batch += 1;
            }
            if hit {
                tally.hits += 1;
                tally.late_hits += u64::from(self.is_late(position));
            } else {
                let row = self.rows[position] as usize;
                tally.missed_row_bytes += u64::from(self.row_bytes[row]);
                let (block, count) = self.blocks[row];
                if std::mem::replace(&mut stamps[block as usize], batch as u32) != batch as u32 {
                    tally.missed_blocks += u64::from(count);
                }
            }
        })?;
        Ok(self.point(config.rows as u64, tally))
    }

    /// Replays and counts nothing but hits: what a cache costs by itself.
    pub fn replay_hits(&self, config: &Replay) -> Result<u64> {
        let mut hits = 0;
        self.replay(config, |_, hit| hits += u64::from(hit))?;
        Ok(hits)
    }

    /// How often each stack distance occurs, and how many accesses are the first of their row.
    pub fn stack_distances(&self) -> (Vec<u64>, u64) {
        let mut counts = vec![0; self.distinct()];
        let mut first = 0;
        let mut stack = RecencyStack::new(self.distinct());
        for &row in &self.rows {
            match stack.touch(row) {
                Some(depth) => counts[depth as usize] += 1,
                None => first += 1,
            }
        }
        (counts, first)
    }

    fn replay(&self, config: &Replay, visit: impl FnMut(usize, bool)) -> Result<()> {
        // A cache with room for every row evicts nothing; more room would only be memory.
        let rows = self.scaled(config.rows).min(self.distinct().max(1));
        let scaled = Replay { rows, ..*config };
        if config.policy == PolicyKind::Lfu && self.sample.is_some() {
            return self.replay_lfu_sample(scaled.rows, visit);
        }
        let next_use = if config.policy == PolicyKind::Min { self.next_use() } else { &[] };
        replay(&scaled, &self.keys, &self.batch_ends, next_use, visit)
    }

    /// lfu does not scale by itself. Once every other row was used twice, a newcomer leaves at the next miss, of
    /// which the whole stream has 1/R times as many: a row of the sample must not be given the time that the sample
    /// has. It stays if it is used again before the whole stream is expected to miss once.
    fn replay_lfu_sample(&self, rows: usize, mut visit: impl FnMut(usize, bool)) -> Result<()> {
        let mut cache = RowCache::new(rows, Lfu::new(rows))?;
        let mut newcomer: Option<(u64, u64)> = None;
        let mut misses = 0u64;
        for (position, &key) in self.keys.iter().enumerate() {
            let number = self.numbers_in_all[position];
            let since = newcomer.filter(|&(waiting, _)| waiting == key).map(|(_, since)| since);
            let gone = since.is_some_and(|since| u128::from(number - since) * u128::from(misses) >= position as u128);
            let hit = !gone && cache.access(key).is_hit();
            if gone || (!hit && cache.len() == rows && cache.policy().has_lone_newcomer()) {
                newcomer = Some((key, number));
            } else if since.is_some() {
                newcomer = None;
            }
            misses += u64::from(!hit);
            visit(position, hit);
        }
        Ok(())
    }

    /// Whether the access is in the second half of the whole stream.
    fn is_late(&self, position: usize) -> bool {
        let number = self.numbers_in_all.get(position).copied().unwrap_or(position as u64);
        number >= self.accesses_all / 2
    }

    fn scaled(&self, rows: usize) -> usize {
        // A size of 0 stays 0, for the cache to refuse.
        self.sample.map_or(rows, |Sample { rate, .. }| ((rows as f64 * rate).round() as usize).max(rows.min(1)))
    }

    /// The bytes of an average row that misses, as often as the corrected hit rate says.
    fn missed_bytes(&self, tally: Tally, hit_rate: f64) -> u64 {
        let misses = self.len() as u64 - tally.hits;
        if misses == 0 {
            return 0;
        }
        let row_bytes = tally.missed_row_bytes as f64 / misses as f64;
        ((1.0 - hit_rate) * self.accesses_all as f64 * row_bytes).round() as u64
    }

    fn point(&self, rows: u64, tally: Tally) -> CurvePoint {
        let rate = self.sample.map_or(1.0, |sample| sample.rate);
        let late_all = (self.accesses_all - self.accesses_all / 2) as f64 * rate;
        let half = self.accesses_all / 2;
        let late = match self.sample {
            Some(_) => self.len() - self.numbers_in_all.partition_point(|&number| number < half),
            None => self.len() - half as usize,
        } as f64;
        let seen = self.len() as f64;
        let expected = self.accesses_all as f64 * rate;
        let share = |hits: u64, seen: f64, expected: f64| {
            if expected > 0.0 { ((hits as f64 + expected - seen) / expected).clamp(0.0, 1.0) } else { 0.0 }
        };
        let exact = self.sample.is_none();
        let hit_rate = share(tally.hits, seen, expected);
        CurvePoint {
            rows,
            accesses: self.accesses_all,
            hits: if exact { tally.hits } else { (hit_rate * self.accesses_all as f64).round() as u64 },
            hit_rate,
            hit_rate_second_half: share(tally.late_hits, late, late_all),
            missed_row_bytes: if exact { tally.missed_row_bytes } else { self.missed_bytes(tally, hit_rate) },
            missed_block_bytes: exact.then_some(tally.missed_blocks * self.block_bytes),
            sample_rate: rate,
        }
    }
}

/// The level of each block that a batch touches: that of its row with the highest level, since a block is read
/// as soon as one of its rows misses.
struct BlockLevels {
    level: Vec<u32>,
    touched: Vec<(u32, u32)>,
}

const UNTOUCHED: u32 = u32::MAX;

impl BlockLevels {
    fn new(blocks: usize) -> Self {
        Self { level: vec![UNTOUCHED; blocks], touched: Vec::new() }
    }

    #[inline]
    fn add(&mut self, block: (u32, u32), level: u32) {
        let known = &mut self.level[block.0 as usize];
        if *known == UNTOUCHED {
            self.touched.push(block);
            *known = level;
        } else {
            *known = level.max(*known);
        }
    }

    fn end_batch(&mut self, mut count: impl FnMut(u32, u32)) {
        for (block, blocks) in self.touched.drain(..) {
            count(std::mem::replace(&mut self.level[block as usize], UNTOUCHED), blocks);
        }
    }
}
