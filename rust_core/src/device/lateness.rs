//! How punctual a wall-clock run was, and whether the host is fast enough for the device.

use crate::stats::LatencyHistogram;

/// A request is late when it is delivered more than this after it was due ...
const LATE_NS_MIN: u64 = 2_000;
/// ... or more than this share of its model latency, whichever is larger.
const LATE_PERCENT: u64 = 2;

/// How punctual a wall-clock run was. Every request of a batch counts as delivered with its batch.
#[derive(Debug, Clone, Default)]
pub struct Lateness {
    /// Requests delivered.
    pub requests: u64,
    /// Requests delivered too late.
    pub late_requests: u64,
    /// Delivery minus due time, of batches.
    pub late_by: LatencyHistogram,
}

impl Lateness {
    /// A run with more late requests than this share is invalid.
    pub const SHARE_MAX: f64 = 0.01;

    /// Records one batch that was due at `due_ns`, submitted at `submitted_ns` and delivered at `delivered_ns`.
    pub fn record(&mut self, requests: u64, submitted_ns: u64, due_ns: u64, delivered_ns: u64) {
        if requests == 0 {
            return;
        }
        let model_ns = due_ns.saturating_sub(submitted_ns);
        let late_ns = delivered_ns.saturating_sub(due_ns);
        self.requests += requests;
        self.late_by.record(late_ns);
        if late_ns > LATE_NS_MIN.max(model_ns * LATE_PERCENT / 100) {
            self.late_requests += requests;
        }
    }

    /// Share of late requests.
    pub fn late_share(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.late_requests as f64 / self.requests as f64 }
    }
}

/// Time that the host needed beyond the model's, to be taken from later waits (the idea is Quartz's:
/// the overhead of emulation is subtracted from the next delay).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Debt {
    /// Not yet made up for.
    pub outstanding_ns: u64,
    /// All of it, made up for or not.
    pub incurred_ns: u64,
    /// Time of all batches by the model.
    pub modelled_ns: u64,
}

impl Debt {
    /// One batch that the model gives `model_ns` and that took the host `host_ns`. Gives how long to
    /// wait now: what is left of the model's time after the host's work and earlier debt.
    pub fn settle(&mut self, model_ns: u64, host_ns: u64) -> u64 {
        self.modelled_ns += model_ns;
        if host_ns > model_ns {
            self.incurred_ns += host_ns - model_ns;
            self.outstanding_ns += host_ns - model_ns;
            return 0;
        }
        let left_ns = model_ns - host_ns;
        let paid_ns = left_ns.min(self.outstanding_ns);
        self.outstanding_ns -= paid_ns;
        left_ns - paid_ns
    }

    /// Debt that was never made up for, as a share of the model's time: by so much a run was too slow.
    pub fn share(&self) -> f64 {
        if self.modelled_ns == 0 { 0.0 } else { self.outstanding_ns as f64 / self.modelled_ns as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debt_is_carried_forward_and_paid_by_later_waits() {
        let mut debt = Debt::default();
        assert_eq!(debt.settle(100, 130), 0);
        assert_eq!(debt.settle(100, 90), 0, "ten of thirty are paid");
        assert_eq!(debt.settle(100, 40), 40, "and the other twenty");
        assert_eq!(debt, Debt { outstanding_ns: 0, incurred_ns: 30, modelled_ns: 300 });
        // What was waited and what was worked is what the model says, once the debt is paid.
        assert_eq!(130 + 90 + 40 + 40, 300);
    }

    #[test]
    fn a_request_is_late_beyond_two_microseconds_or_two_percent() {
        let mut lateness = Lateness::default();
        lateness.record(1, 0, 10_000, 12_000);
        lateness.record(1, 0, 1_000_000, 1_019_000);
        assert_eq!(lateness.late_requests, 0);
        lateness.record(3, 0, 10_000, 12_001);
        assert_eq!((lateness.late_requests, lateness.requests), (3, 5));
    }
}
