//! The media units of one device: reads in FIFO order, and the programs, erases and stalls that
//! draining the write buffer puts on them.
//!
//! A read has priority over background work that has not started. It waits for work that has, at
//! most until that is suspended; the work then continues after the reads that were queued.

use std::collections::VecDeque;

use super::spec::{BackgroundSpec, DeviceSpec, DeviceState};
use crate::rng;
use crate::units::PS_PER_NS;

/// A stall comes after 50 to 150 % of the average distance.
const STALL_SPREAD_PERCENT: u64 = 100;
/// Work of one kind that one write may put on the units; a larger write would be split by any driver.
const OPERATIONS_PER_WRITE_MAX: u64 = 1 << 16;

#[derive(Debug, Clone, Copy, Default)]
struct Unit {
    /// End of the last read.
    read_free_ps: u64,
    /// When the background work begins, and when it ends.
    background_from_ps: u64,
    background_until_ps: u64,
    /// How long a read waits for that work to be suspended.
    suspend_ps: u64,
    /// End of the last read for which it was suspended.
    suspended_until_ps: u64,
}

/// One piece of background work.
#[derive(Debug, Clone, Copy)]
struct Work {
    at_ps: u64,
    unit: u32,
    duration_ps: u64,
    suspend_ps: u64,
}

/// What is counted up to the next piece of background work.
#[derive(Debug)]
struct Progress {
    spec: BackgroundSpec,
    /// Bytes to program before the next program, erase and stall.
    program_left: u64,
    erase_left: u64,
    stall_left: u64,
    programs: u64,
    erases: u64,
    stalls: u64,
    stalls_on: bool,
    key: u64,
}

/// Units, and the background work that is ahead of them.
#[derive(Debug)]
pub(super) struct Media {
    units: Vec<Unit>,
    page_shift: u32,
    work: VecDeque<Work>,
    progress: Option<Progress>,
    /// Sum over units of the time for which reads kept them busy.
    pub(super) read_busy_ps: u64,
    /// The same for background work.
    pub(super) background_busy_ps: u64,
}

impl Media {
    pub(super) fn new(spec: &DeviceSpec, key: u64) -> Self {
        let progress = spec.background.map(|background| Progress {
            program_left: background.program_bytes,
            erase_left: background.erase_bytes,
            stall_left: stall_distance(&background, key, 0),
            programs: 0,
            erases: 0,
            stalls: 0,
            stalls_on: background.stall_every_bytes > 0 && spec.state == DeviceState::Steady,
            key,
            spec: background,
        });
        Self {
            units: vec![Unit::default(); spec.units as usize],
            page_shift: spec.page_bytes.trailing_zeros(),
            work: VecDeque::new(),
            progress,
            read_busy_ps: 0,
            background_busy_ps: 0,
        }
    }

    /// End of a read that arrives at `arrival_ps`, and whether it had to wait for its units. Each page is one access of `base_ps` on its own
    /// unit; the last to end takes `draw_ps` instead.
    pub(super) fn read(
        &mut self,
        arrival_ps: u64,
        offset: u64,
        nbytes: u64,
        base_ps: u64,
        draw_ps: u64,
    ) -> (u64, bool) {
        let first = offset >> self.page_shift;
        let last = (offset + nbytes - 1) >> self.page_shift;
        if first == last {
            return self.access(first, arrival_ps, draw_ps);
        }
        // The page whose unit is free last is read last; the draw goes there.
        let slowest = (first..=last)
            .max_by_key(|&page| (self.units[self.unit_of(page)].read_free_ps.max(arrival_ps), page))
            .expect("a read touches a page");
        let mut end_ps = 0;
        for page in (first..=last).filter(|&page| page != slowest) {
            end_ps = end_ps.max(self.access(page, arrival_ps, base_ps).0);
        }
        (end_ps.max(self.access(slowest, arrival_ps, draw_ps).0), true)
    }

    #[inline]
    fn unit_of(&self, page: u64) -> usize {
        ((u128::from(rng::mix(page)) * self.units.len() as u128) >> 64) as usize
    }

    #[inline]
    fn access(&mut self, page: u64, arrival_ps: u64, duration_ps: u64) -> (u64, bool) {
        let place = self.unit_of(page);
        let unit = &mut self.units[place];
        let mut start_ps = arrival_ps.max(unit.read_free_ps);
        if start_ps <= unit.background_from_ps && unit.background_until_ps > unit.background_from_ps {
            // Work that has not begun lets the read go first.
            unit.background_from_ps += duration_ps;
            unit.background_until_ps += duration_ps;
        } else if unit.background_until_ps > start_ps {
            let queued = start_ps <= unit.suspended_until_ps;
            let wait_ps = if queued { 0 } else { unit.suspend_ps.min(unit.background_until_ps - start_ps) };
            start_ps += wait_ps;
            if unit.background_until_ps > start_ps {
                unit.background_until_ps += duration_ps;
                unit.suspended_until_ps = start_ps + duration_ps;
            }
        }
        let end_ps = start_ps + duration_ps;
        unit.read_free_ps = end_ps;
        self.read_busy_ps += duration_ps;
        (end_ps, start_ps > arrival_ps)
    }

    /// A write of `media_bytes`, amplification included, is through the buffer at `at_ps`, not before earlier ones.
    pub(super) fn drained(&mut self, at_ps: u64, media_bytes: u64, random_bytes: u64) {
        let units = self.units.len() as u64;
        let Some(progress) = &mut self.progress else { return };
        let spec = progress.spec;
        let programs = take(&mut progress.program_left, media_bytes, spec.program_bytes);
        for _ in 0..programs {
            let unit = (progress.programs % units) as u32;
            progress.programs += 1;
            self.work.push_back(Work {
                at_ps,
                unit,
                duration_ps: spec.program_ns * PS_PER_NS,
                suspend_ps: spec.program_suspend_ns * PS_PER_NS,
            });
        }
        if spec.erase_bytes > 0 {
            for _ in 0..take(&mut progress.erase_left, media_bytes, spec.erase_bytes) {
                let unit = (progress.erases % units) as u32;
                progress.erases += 1;
                self.work.push_back(Work {
                    at_ps,
                    unit,
                    duration_ps: spec.erase_ns * PS_PER_NS,
                    suspend_ps: spec.erase_suspend_ns * PS_PER_NS,
                });
            }
        }
        let mut random_left = if progress.stalls_on { random_bytes } else { 0 };
        while random_left > 0 {
            if progress.stall_left > random_left {
                progress.stall_left -= random_left;
                return;
            }
            random_left -= progress.stall_left;
            progress.stalls += 1;
            progress.stall_left = stall_distance(&spec, progress.key, progress.stalls);
            let place = u128::from(rng::draw(progress.key, 2 * progress.stalls + 1)) * u128::from(units);
            let duration_ps = spec.stall_ns * PS_PER_NS;
            self.work.push_back(Work { at_ps, unit: (place >> 64) as u32, duration_ps, suspend_ps: duration_ps });
        }
    }

    /// Time of the next piece of background work.
    #[inline]
    pub(super) fn next_work_ps(&self) -> u64 {
        self.work.front().map_or(u64::MAX, |work| work.at_ps)
    }

    /// Starts the next piece of background work.
    pub(super) fn start_work(&mut self) {
        let Some(work) = self.work.pop_front() else { return };
        let unit = &mut self.units[work.unit as usize];
        let busy = unit.background_until_ps > work.at_ps;
        let start_ps = work.at_ps.max(unit.read_free_ps).max(unit.background_until_ps);
        // Pieces that follow one another are one piece to a read, which waits for the slowest to be suspended.
        unit.suspend_ps = if busy { unit.suspend_ps.max(work.suspend_ps) } else { work.suspend_ps };
        if !busy {
            unit.background_from_ps = start_ps;
        }
        unit.background_until_ps = start_ps + work.duration_ps;
        self.background_busy_ps += work.duration_ps;
    }
}

/// How often a counter that runs down from `every` passes zero with `nbytes` more.
fn take(left: &mut u64, nbytes: u64, every: u64) -> u64 {
    if nbytes < *left {
        *left -= nbytes;
        return 0;
    }
    let beyond = nbytes - *left;
    *left = every - beyond % every;
    (1 + beyond / every).min(OPERATIONS_PER_WRITE_MAX)
}

fn stall_distance(spec: &BackgroundSpec, key: u64, number: u64) -> u64 {
    let spread = u128::from(spec.stall_every_bytes) * u128::from(STALL_SPREAD_PERCENT) / 100;
    let drawn = (u128::from(rng::draw(key, 2 * number)) * spread) >> 64;
    (u128::from(spec.stall_every_bytes) - spread / 2 + drawn).max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_runs_down_counts_every_passing() {
        let mut left = 10;
        let passed: u64 = [3, 6, 1, 25, 5].iter().map(|&nbytes| take(&mut left, nbytes, 10)).sum();
        assert_eq!((passed, left), (4, 10));
    }
}
