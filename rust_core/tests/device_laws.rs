//! Laws that hold for every device and every load, and files that are damaged in every way.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use tiermem_core::device::{
    Arrival, DeviceSpec, Operation, Pattern, Request, Schedule, TimedDevice, Workload, run_virtual,
};

fn text(name: &str) -> String {
    let path = format!("{}/../emulator_configs/devices/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// A NAND drive without tails and without background work.
fn plain() -> DeviceSpec {
    let mut spec = DeviceSpec::from_toml(&text("nand-p3700")).unwrap();
    spec.read.latency_quantiles_ns.clear();
    spec.read.latency_max_ns = 0;
    spec.background = None;
    spec
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every request completes once, time never runs backwards, and nothing is faster than an idle device.
    #[test]
    fn requests_are_conserved(
        seed in any::<u64>(),
        queue_depth in 1usize..80,
        batches in prop::collection::vec(
            (0u64..300_000, prop::collection::vec((any::<bool>(), 0u64..1 << 30, 1u64..100_000), 1..40)),
            1..12,
        ),
    ) {
        let spec = DeviceSpec { units: 7, ..plain() };
        let mut schedule = Schedule::new(vec![TimedDevice { queue_depth, ..TimedDevice::new(spec.clone()) }], seed);
        let (mut now, mut asked, mut bytes) = (0, 0u64, 0u64);
        let mut handles = Vec::new();
        for (pause, requests) in batches {
            now += pause;
            let requests: Vec<Request> = requests
                .into_iter()
                .map(|(write, offset, nbytes)| {
                    let operation = if write { Operation::Write } else { Operation::Read };
                    Request { device: 0, operation, offset, nbytes }
                })
                .collect();
            asked += requests.len() as u64;
            bytes += requests.iter().map(|request| request.nbytes).sum::<u64>();
            handles.push((now, schedule.submit(now, &requests)));
        }
        for (submitted, handle) in handles {
            prop_assert!(schedule.finish(handle) > submitted);
        }
        schedule.drain();
        let snapshot = schedule.snapshot(0);
        let counters = snapshot.counters;
        prop_assert_eq!(counters.reads + counters.writes, asked);
        prop_assert_eq!(counters.read_bytes + counters.write_bytes, bytes);
        prop_assert_eq!(snapshot.read_latency.count(), counters.reads);
        prop_assert_eq!(snapshot.write_latency.count(), counters.writes);
        if counters.reads > 0 {
            let fixed = spec.host.submit_ns + spec.read.command_ns + spec.host.complete_ns;
            prop_assert!(snapshot.read_latency.summary().p50_ns >= fixed);
        }
    }

    /// More units are not slower, on average over seeds.
    #[test]
    fn more_units_are_not_slower_on_average(units in 4u32..200, depth in 1u32..128) {
        let mean = |units: u32| {
            let total: u64 = (0..4u64)
                .map(|seed| {
                    let spec = DeviceSpec { units, ..plain() };
                    let workload = Workload {
                        pattern: Pattern::Random,
                        read_percent: 100,
                        block_bytes: 4096,
                        span_bytes: 1 << 36,
                        arrival: Arrival::QueueDepth(depth),
                        operations: 10_000,
                        warm_up: None,
                        seed,
                    };
                    run_virtual(&spec, &workload, &mut || Ok(())).unwrap().latency.summary().mean_ns
                })
                .sum();
            total as f64
        };
        prop_assert!(mean(2 * units) <= mean(units) * 1.01);
    }

    /// A device file with any damage is refused in a sentence, or is a device; it never panics.
    #[test]
    fn damaged_files_are_refused_or_valid(cut in 0usize..9000, put in "[ -~]{0,12}") {
        let whole = text("nand-p3700");
        let at = cut.min(whole.len());
        let damaged = format!("{}{put}{}", &whole[..at], &whole[(at + put.len()).min(whole.len())..]);
        if let Err(error) = DeviceSpec::from_toml(&damaged) {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    /// Any number in any place is refused with a key, or the model runs with it.
    #[test]
    fn any_numbers_are_refused_or_can_be_run(
        fields in prop::collection::vec((0usize..200, prop_oneof![0u64..10, any::<u64>(), 1u64..1 << 34]), 1..4),
    ) {
        let whole = text("nand-p3700");
        let lines: Vec<&str> = whole.lines().collect();
        let mut damaged: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        for (line, value) in fields {
            if let Some((key, _)) = lines.get(line).and_then(|line| line.split_once(" = "))
                && !key.contains('"') && !["name", "description", "kind"].contains(&key)
            {
                damaged[line] = format!("{key} = {}", value.min(i64::MAX as u64));
            }
        }
        if let Ok(spec) = DeviceSpec::from_toml(&damaged.join("\n")) {
            let workload = Workload {
                pattern: Pattern::Random,
                read_percent: 50,
                block_bytes: 4096.min(spec.capacity_bytes),
                span_bytes: spec.capacity_bytes,
                arrival: Arrival::QueueDepth(4),
                operations: 200,
                warm_up: Some(0),
                seed: 1,
            };
            run_virtual(&spec, &workload, &mut || Ok(())).unwrap();
        }
    }
}
