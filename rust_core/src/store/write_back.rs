//! Rows that leave memory, and rows that are written down while they stay.

use super::parts::{Part, Place};
use super::{State, Store};
use crate::error::Result;
use crate::tier::{PlanBuilder, split_row_key};

/// A plan that writes is closed at this many bytes of units, and the next one begun.
const PLAN_BYTES_MAX: usize = 16 << 20;
/// And at this many rows.
pub(super) const PLAN_ROWS_MAX: usize = 16_384;

/// A plan that takes rows down.
struct Descent<'a> {
    plan: PlanBuilder<'a>,
    parts: &'a [Part],
    rows: usize,
}

impl<'a> Descent<'a> {
    fn new(plan: PlanBuilder<'a>, parts: &'a [Part]) -> Self {
        Self { plan, parts, rows: 0 }
    }

    fn is_full(&self) -> bool {
        self.rows >= PLAN_ROWS_MAX || self.plan.nbytes() >= PLAN_BYTES_MAX
    }

    /// A row left memory. A clean one is dropped, unless a tier below holds rows that memory does not have.
    fn lower(&mut self, key: u64, weights: &[u8], state: &[f32], is_dirty: bool) {
        let (part, row) = split_row_key(key);
        if is_dirty || matches!(self.parts[part].place, Place::Pooled { is_exclusive: true, .. }) {
            self.plan.write_row(part, row, weights, state, is_dirty);
            self.rows += 1;
        }
    }
}

impl State {
    /// Takes pins away and brings every cache back within its budget; what leaves goes down. The pins that are done are
    /// taken out of the list, also if this fails.
    pub(super) fn give_back(&mut self, store: &Store, pins: &mut Vec<(usize, u32)>) -> Result<()> {
        // In the order of the admission.
        pins.reverse();
        while !pins.is_empty() {
            self.make_log_room(store, PLAN_ROWS_MAX)?;
            let Self { parts, pools, keeps_all, lower, .. } = self;
            let Some(lower) = lower.as_mut() else { return Ok(()) };
            let mut descent = Descent::new(PlanBuilder::new(lower), parts);
            while !descent.is_full()
                && let Some((number, place)) = pins.pop()
            {
                let pool = &mut pools[number];
                if !pool.unpin(place) {
                    continue;
                }
                // Where every part stays, nobody has to look whose row it is.
                let stays = keeps_all[number] || {
                    let (part, _) = split_row_key(pool.key(place));
                    matches!(parts[part].place, Place::Pooled { is_cached: true, .. })
                };
                let mut lower = |key, weights: &[u8], state: &[f32], dirty| descent.lower(key, weights, state, dirty);
                if stays {
                    pool.keep(place);
                    while pool.trim_one(&mut lower) {}
                } else {
                    pool.dismiss(place, lower);
                }
            }
            let plan = descent.plan;
            if !plan.is_empty() {
                let job = plan.build(Some(store.clock.now_ns()), &[]);
                self.write_backs.push_back(store.submit(job, false, None).0);
            }
        }
        self.compact(store)
    }

    /// Queues a write-back of every changed row in memory. Every admitted ticket was filled.
    pub(super) fn flush(&mut self, store: &Store) -> Result<()> {
        for number in 0..self.pools.len() {
            let mut dirty = self.pools[number].dirty_rows();
            // In the order of the home, so that the blocks of one plan are neighbours.
            dirty.sort_unstable();
            let mut dirty = dirty.into_iter().peekable();
            while dirty.peek().is_some() {
                self.make_log_room(store, PLAN_ROWS_MAX)?;
                let Self { parts, pools, lower, .. } = self;
                let Some(lower) = lower.as_mut() else { return Ok(()) };
                let mut descent = Descent::new(PlanBuilder::new(lower), parts);
                while !descent.is_full()
                    && let Some((key, place)) = dirty.next()
                {
                    let (weights, state) = pools[number].row(place);
                    descent.lower(key, weights, state, true);
                    pools[number].mark_clean(place);
                }
                let job = descent.plan.build(Some(store.clock.now_ns()), &[]);
                self.write_backs.push_back(store.submit(job, false, None).0);
                // One plan's memory at a time.
                self.settle_write_backs(1)?;
            }
        }
        Ok(())
    }
}
