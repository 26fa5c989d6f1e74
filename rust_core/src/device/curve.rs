//! Byte-addressable devices with measured loaded-latency curves: latency as a function of bandwidth,
//! one curve per share of reads.
//!
//! With m accesses of g bytes outstanding, Little's law gives the working point X L(X) = m g. Beyond
//! the last point of a curve the bandwidth stays and the latency grows with m.

use super::spec::DeviceSpec;
use super::traffic::Operation;
use crate::units::PS_PER_NS;

/// Bandwidth in bytes per nanosecond and latency in nanoseconds.
type Points = Vec<(f64, f64)>;

/// A family of curves, interpolated between shares of reads.
#[derive(Debug, Clone)]
pub struct CurveFamily {
    curves: Vec<(f64, Points)>,
    access_bytes: f64,
}

/// Where a curve is operated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkingPoint {
    /// Latency of an access.
    pub latency_ns: f64,
    /// Bytes per nanosecond, which is 10^9 bytes per second.
    pub bytes_per_ns: f64,
    /// Whether more accesses outstanding would give no more bandwidth.
    pub saturated: bool,
}

impl CurveFamily {
    /// Of a validated specification that has curves.
    pub fn new(spec: &DeviceSpec) -> Self {
        let points = |points: &[(u64, u64)]| points.iter().map(|&(b, ns)| (b as f64 * 1e-9, ns as f64)).collect();
        Self {
            curves: spec
                .curves
                .iter()
                .map(|curve| (f64::from(curve.read_percent) / 100.0, points(&curve.points)))
                .collect(),
            access_bytes: spec.page_bytes as f64,
        }
    }

    /// The curve for a share of reads between 0 and 1: at equal shares of their highest bandwidth,
    /// latency and bandwidth are interpolated between the two nearest curves; outside, the nearest holds.
    fn at(&self, read_share: f64) -> Points {
        let upper = self.curves.iter().position(|&(share, _)| share >= read_share).unwrap_or(self.curves.len() - 1);
        let (share_above, above) = &self.curves[upper];
        if upper == 0 || *share_above <= read_share {
            return above.clone();
        }
        let (share_below, below) = &self.curves[upper - 1];
        let weight = (read_share - share_below) / (share_above - share_below);
        let (top_below, top_above) = (top(below), top(above));
        let mut loads: Vec<f64> = below.iter().map(|&(x, _)| x / top_below).collect();
        loads.extend(above.iter().map(|&(x, _)| x / top_above));
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        let mix = |low: f64, high: f64| low + weight * (high - low);
        loads
            .into_iter()
            .map(|load| {
                let latency = mix(latency_at(below, load * top_below), latency_at(above, load * top_above));
                (load * mix(top_below, top_above), latency)
            })
            .collect()
    }

    /// The working point with `outstanding` accesses of one page each.
    pub fn closed(&self, read_share: f64, outstanding: u64) -> WorkingPoint {
        let curve = self.at(read_share);
        let target = outstanding.max(1) as f64 * self.access_bytes;
        for pair in curve.windows(2) {
            let ((x0, l0), (x1, l1)) = (pair[0], pair[1]);
            if x1 * l1 >= target {
                // X (l0 + slope (X - x0)) = target.
                let slope = (l1 - l0) / (x1 - x0);
                let linear = l0 - slope * x0;
                let bytes_per_ns = if slope == 0.0 {
                    target / linear
                } else {
                    (libm::sqrt(linear * linear + 4.0 * slope * target) - linear) / (2.0 * slope)
                };
                return WorkingPoint { latency_ns: target / bytes_per_ns, bytes_per_ns, saturated: false };
            }
        }
        let bytes_per_ns = top(&curve);
        WorkingPoint { latency_ns: target / bytes_per_ns, bytes_per_ns, saturated: true }
    }

    /// The working point at an offered bandwidth; beyond the highest, the end of the curve.
    pub fn open(&self, read_share: f64, bytes_per_ns: f64) -> WorkingPoint {
        let curve = self.at(read_share);
        let highest = top(&curve);
        let bytes_per_ns_served = bytes_per_ns.min(highest);
        WorkingPoint {
            latency_ns: latency_at(&curve, bytes_per_ns_served),
            bytes_per_ns: bytes_per_ns_served,
            saturated: bytes_per_ns > highest,
        }
    }

    /// Time of a batch of `accesses`, at most `parallelism` of them outstanding, and the latency of each.
    pub(super) fn batch_ps(&self, operation: Operation, accesses: u64, parallelism: u64) -> (u64, u64) {
        let read_share = if operation == Operation::Read { 1.0 } else { 0.0 };
        let outstanding = accesses.min(parallelism);
        let point = self.closed(read_share, outstanding);
        let rest_ns = (accesses - outstanding) as f64 * self.access_bytes / point.bytes_per_ns;
        let to_ps = |ns: f64| libm::round(ns * PS_PER_NS as f64) as u64;
        (to_ps(point.latency_ns + rest_ns), to_ps(point.latency_ns))
    }
}

fn top(curve: &[(f64, f64)]) -> f64 {
    curve[curve.len() - 1].0
}

fn latency_at(curve: &[(f64, f64)], x: f64) -> f64 {
    let upper = curve.partition_point(|&(at, _)| at < x).clamp(1, curve.len() - 1);
    let ((x0, l0), (x1, l1)) = (curve[upper - 1], curve[upper]);
    (l0 + (x - x0) / (x1 - x0) * (l1 - l0)).min(l1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family() -> CurveFamily {
        CurveFamily {
            curves: vec![
                (0.5, vec![(0.0, 100.0), (40.0, 200.0), (80.0, 400.0)]),
                (1.0, vec![(0.0, 100.0), (50.0, 120.0), (100.0, 200.0)]),
            ],
            access_bytes: 64.0,
        }
    }

    #[test]
    fn the_working_point_lies_on_the_curve_and_obeys_littles_law() {
        let family = family();
        let mut last = 0.0;
        for outstanding in [1, 10, 50, 94, 156, 200, 300, 1000] {
            let point = family.closed(1.0, outstanding);
            assert!((point.latency_ns * point.bytes_per_ns / 64.0 / outstanding as f64 - 1.0).abs() < 1e-12);
            if !point.saturated {
                assert!((family.open(1.0, point.bytes_per_ns).latency_ns - point.latency_ns).abs() < 1e-9);
            }
            assert!(point.latency_ns > last);
            last = point.latency_ns;
        }
        assert!(family.closed(1.0, 1000).saturated);
    }

    #[test]
    fn between_two_shares_of_reads_both_latency_and_bandwidth_lie_between() {
        let middle = family().open(0.75, 1e9);
        assert!((middle.bytes_per_ns - 90.0).abs() < 1e-12 && middle.saturated);
        assert!((middle.latency_ns - 300.0).abs() < 1e-9);
        let idle = family().open(0.75, 0.0);
        assert!((idle.latency_ns - 100.0).abs() < 1e-12);
        // Below the lowest share the lowest curve holds.
        assert!((family().open(0.0, 40.0).latency_ns - 200.0).abs() < 1e-12);
    }
}
