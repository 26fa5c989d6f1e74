//! The only place that knows what time it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Waiting sleeps until this long before the due time and then spins: a sleep on a virtual
/// machine overshoots by 71-94 us at the default timer slack (reference notes, table C7).
const SPIN_MARGIN_NS: u64 = 150_000;

/// How time passes for one hierarchy.
#[derive(Debug)]
pub enum Clock {
    /// Nobody waits: time is a number that moves when a wait or a piece of work is accounted.
    Virtual(AtomicU64),
    /// Time passes by itself; waiting really waits.
    Wall(Instant),
}

impl Clock {
    /// A virtual clock at zero.
    pub fn new_virtual() -> Self {
        Self::Virtual(AtomicU64::new(0))
    }

    /// A wall clock whose zero is now.
    pub fn new_wall() -> Self {
        Self::Wall(Instant::now())
    }

    /// Whether time is accounted and never waited for.
    pub fn is_virtual(&self) -> bool {
        matches!(self, Self::Virtual(_))
    }

    /// Nanoseconds since the clock was made.
    pub fn now_ns(&self) -> u64 {
        match self {
            Self::Virtual(now) => now.load(Ordering::Acquire),
            Self::Wall(origin) => origin.elapsed().as_nanos() as u64,
        }
    }

    /// Returns once the time is at least `due_ns`.
    pub fn wait_until(&self, due_ns: u64) {
        match self {
            Self::Virtual(now) => {
                now.fetch_max(due_ns, Ordering::AcqRel);
            }
            Self::Wall(_) => loop {
                let left = due_ns.saturating_sub(self.now_ns());
                if left == 0 {
                    return;
                }
                if left > SPIN_MARGIN_NS {
                    std::thread::sleep(Duration::from_nanos(left - SPIN_MARGIN_NS));
                } else {
                    std::hint::spin_loop();
                }
            },
        }
    }

    /// Accounts for work of `duration_ns`. Work on a wall clock takes its own time, so this is a no-op there.
    pub fn advance(&self, duration_ns: u64) {
        if let Self::Virtual(now) = self {
            now.fetch_add(duration_ns, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_moves_only_when_told_and_never_back() {
        let clock = Clock::new_virtual();
        clock.advance(5);
        clock.wait_until(100);
        clock.wait_until(50);
        assert_eq!(clock.now_ns(), 100);
    }

    #[test]
    fn wall_time_reaches_the_due_time() {
        let clock = Clock::new_wall();
        let due = clock.now_ns() + 200_000;
        clock.wait_until(due);
        assert!(clock.now_ns() >= due);
    }
}
