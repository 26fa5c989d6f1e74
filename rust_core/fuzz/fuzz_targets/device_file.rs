//! Any text is refused in one sentence, or is a device on which any small load runs to its end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiermem_core::device::{Arrival, DeviceSpec, Pattern, Workload, run_virtual};

fuzz_target!(|text: &str| {
    let spec = match DeviceSpec::from_toml(text) {
        Ok(spec) => spec,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            return;
        }
    };
    for (pattern, read_percent, block_bytes) in
        [(Pattern::Random, 50, 4096), (Pattern::Sequential, 0, 65_536), (Pattern::Random, 100, 1)]
    {
        let workload = Workload {
            pattern,
            read_percent,
            block_bytes: spec.capacity_bytes.min(block_bytes),
            span_bytes: spec.capacity_bytes,
            arrival: Arrival::QueueDepth(4),
            operations: 200,
            warm_up: Some(0),
            seed: 1,
        };
        let point = run_virtual(&spec, &workload, &mut || Ok(())).expect("a valid device runs");
        assert_eq!(point.latency.count(), 200 * point.accesses_per_operation);
    }
});
