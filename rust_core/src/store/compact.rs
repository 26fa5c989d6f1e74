//! Compaction of logs: the rows that still live in sparse segments are appended again, so that the segments are free.
//!
//! It runs in two steps. One release reads the segments, a later one appends what still lives in them; so nobody waits for
//! it. Only if a plan finds no room does it run at once, whatever it costs.

use super::{HomeLayout, State, Store};
use crate::device::BatchHandle;
use crate::error::Result;
use crate::tier::{BlockKey, JobHandle, Kept, PlanBuilder, split_row_key};

/// Compaction of one log.
#[derive(Default)]
pub(super) struct LogCompaction {
    running: Option<Running>,
    /// Rows that were moved.
    pub(super) moved_rows: u64,
    /// Times that a plan had to wait for it.
    pub(super) stalls: u64,
}

struct Running {
    blocks: Vec<BlockKey>,
    job: JobHandle,
    reads: Option<BatchHandle>,
}

impl State {
    /// Makes room for a plan that appends at most so many rows to each log.
    pub(super) fn make_log_room(&mut self, store: &Store, rows: usize) -> Result<()> {
        for log in 0..self.compactions.len() {
            let mut has_waited = false;
            while !self.lower.as_ref().is_none_or(|lower| lower.logs[log].log.has_room(rows as u64)) {
                let has_begun = self.begin_compaction(store, log);
                let has_finished = !has_begun && self.finish_compaction(store, log)?;
                has_waited |= has_finished;
                if !has_begun && !has_finished {
                    // No gaps are left: the log was laid out for this many rows.
                    break;
                }
            }
            self.compactions[log].stalls += u64::from(has_waited);
        }
        Ok(())
    }

    /// The part of compaction that a release does.
    pub(super) fn compact(&mut self, store: &Store) -> Result<()> {
        for log in 0..self.compactions.len() {
            if self.finish_compaction(store, log)? {
                continue;
            }
            let Some(lower) = &self.lower else { continue };
            let home = &lower.logs[log];
            let HomeLayout::Log { compaction_share, .. } = store.config.tiers[home.tier + 1].layout else { continue };
            let moved_rows = self.compactions[log].moved_rows as f64;
            if home.log.is_low() && moved_rows <= compaction_share * home.log.appended_rows() as f64 {
                self.begin_compaction(store, log);
            }
        }
        Ok(())
    }

    /// Reads sparse segments, unless that is already done; gives whether it was begun now.
    fn begin_compaction(&mut self, store: &Store, log: usize) -> bool {
        let Some(lower) = &mut self.lower else { return false };
        if self.compactions[log].running.is_some() {
            return false;
        }
        let blocks = lower.logs[log].log.begin_compaction();
        if blocks.is_empty() {
            return false;
        }
        let part = lower.logs[log].first_part;
        let nbytes = lower.logs[log].log.block_bytes() as usize;
        let mut plan = PlanBuilder::new(lower);
        let kept: Vec<Kept> = blocks.iter().map(|&block| (plan.peek_block(block, part), 0, nbytes)).collect();
        let job = plan.build(Some(store.clock.now_ns()), &kept);
        let (job, reads) = store.submit(job, true, None);
        self.compactions[log].running = Some(Running { blocks, job, reads });
        true
    }

    /// Appends what still lives in the segments that were read; gives whether any were.
    fn finish_compaction(&mut self, store: &Store, log: usize) -> Result<bool> {
        let Some(running) = &self.compactions[log].running else { return Ok(false) };
        let done = running.job.take()?;
        let Some(Running { blocks, reads, .. }) = self.compactions[log].running.take() else { return Ok(false) };
        let Some(lower) = &mut self.lower else { return Ok(false) };
        let nbytes = lower.logs[log].log.block_bytes() as usize;
        let mut living = Vec::new();
        for (block, bytes) in blocks.iter().zip(done.kept.chunks_exact(nbytes)) {
            let rows = lower.logs[log].log.rows_in(*block, bytes);
            let rows = rows.filter(|&(key, location, _)| lower.lives_at(key, location));
            living.extend(rows.map(|(key, _, offset)| (key, &bytes[offset..])));
        }
        self.compactions[log].moved_rows += living.len() as u64;
        let mut plan = PlanBuilder::new(lower);
        for (key, image) in living {
            let (part, row) = split_row_key(key);
            plan.relocate(part, row, image);
        }
        plan.end_compaction(log);
        let job = plan.build(Some(store.clock.now_ns()), &[]);
        let (job, _) = store.submit(job, false, reads);
        self.write_backs.push_back(job);
        Ok(true)
    }
}
