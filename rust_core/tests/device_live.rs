//! A device that a client drives, on a clock that the test moves: what the client sees is what the model says.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use tiermem_core::ErrorKind;
use tiermem_core::backend::BackendConfig;
use tiermem_core::clock::Clock;
use tiermem_core::device::{Arrival, DeviceSpec, LiveConfig, LiveDevice, Pattern, PointResult, Workload, run_virtual};

const BLOCK: u64 = 4096;
const SPAN: u64 = 16 << 20;

fn spec(name: &str) -> DeviceSpec {
    let path = format!("{}/../emulator_configs/devices/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    DeviceSpec::from_toml(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn config() -> LiveConfig {
    LiveConfig { backend: BackendConfig::ram(), capacity_bytes: SPAN, seed: 1, zero_latency: false, transport_ns: 0 }
}

fn model(spec: &DeviceSpec, queue_depth: u32, operations: u64) -> PointResult {
    let workload = Workload {
        pattern: Pattern::Sequential,
        read_percent: 100,
        block_bytes: BLOCK,
        span_bytes: SPAN,
        arrival: Arrival::QueueDepth(queue_depth),
        operations,
        warm_up: Some(0),
        seed: 1,
    };
    run_virtual(spec, &workload, &mut || Ok(())).unwrap()
}

/// A client in a closed loop, with a way of `way_ns` to the device and back. Gives mean latency and IOPS.
fn client(spec: DeviceSpec, config: &LiveConfig, queue_depth: u32, operations: u64, way_ns: u64) -> (f64, f64) {
    let clock = Arc::new(Clock::new_virtual());
    // Not at zero, before which nothing can have been submitted.
    clock.advance(1_000_000);
    let mut device = LiveDevice::open(spec, config, Arc::clone(&clock)).unwrap();
    let mut memory = vec![0; BLOCK as usize];
    let (mut sent, mut latency_ns, mut done) = (vec![0; queue_depth as usize], 0, 0);
    // What is on its way to the device, as (arrives, tag), and when the client had its first answer.
    let mut underway: Vec<(u64, u32)> = Vec::new();
    for tag in 0..queue_depth {
        sent[tag as usize] = clock.now_ns() - way_ns / 2;
        underway.push((clock.now_ns(), tag));
    }
    let (began_ns, mut number) = (clock.now_ns() - way_ns / 2, 0);
    while done < operations {
        let arrival_ns = underway.iter().map(|next| next.0).min().unwrap_or(u64::MAX);
        let event_ns = device.next_event_ns().unwrap_or(u64::MAX);
        clock.wait_until(arrival_ns.min(event_ns));
        while let Some(tag) = device.poll() {
            let seen_ns = clock.now_ns() + way_ns / 2;
            latency_ns += seen_ns - sent[tag as usize];
            done += 1;
            sent[tag as usize] = seen_ns;
            underway.push((seen_ns + way_ns / 2, tag));
        }
        for (_, tag) in underway.extract_if(.., |next| next.0 <= clock.now_ns()) {
            device.read(tag, number % (SPAN / BLOCK) * BLOCK, &mut memory).unwrap();
            number += 1;
        }
    }
    let elapsed_ns = clock.now_ns() + way_ns / 2 - began_ns;
    (latency_ns as f64 / done as f64, done as f64 * 1e9 / elapsed_ns as f64)
}

#[test]
fn a_client_without_a_way_sees_the_model() {
    for name in ["nand-p3700", "optane-p4800x", "znand-sz985"] {
        for queue_depth in [1, 4, 32, 256] {
            let expected = model(&spec(name), queue_depth, 20_000);
            let (mean_ns, iops) = client(spec(name), &config(), queue_depth, 20_000, 0);
            // The client's clock counts nanoseconds, the model picoseconds.
            assert!(
                (mean_ns / expected.latency.summary().mean_ns as f64 - 1.0).abs() < 2e-3,
                "{name} QD {queue_depth}: {mean_ns}"
            );
            assert!((iops / expected.iops() - 1.0).abs() < 2e-3, "{name} QD {queue_depth}: {iops}");
        }
    }
}

#[test]
fn a_way_that_is_subtracted_is_not_seen() {
    let way_ns = 30_000;
    for queue_depth in [1, 8, 32] {
        let expected = model(&spec("nand-p3700"), queue_depth, 20_000).latency.summary().mean_ns as f64;
        let raw = client(spec("nand-p3700"), &config(), queue_depth, 20_000, way_ns).0;
        let subtracting = LiveConfig { transport_ns: way_ns, ..config() };
        let seen = client(spec("nand-p3700"), &subtracting, queue_depth, 20_000, way_ns).0;
        assert!((seen / expected - 1.0).abs() < 0.01, "QD {queue_depth}: {seen} for {expected}");
        assert!(raw > seen + 0.5 * way_ns as f64, "QD {queue_depth}: {raw} without");
    }
}

#[test]
fn a_device_without_latency_answers_at_once_and_keeps_the_bytes() {
    let clock = Arc::new(Clock::new_virtual());
    let config = LiveConfig { zero_latency: true, ..config() };
    let mut device = LiveDevice::open(spec("nand-p3700"), &config, clock).unwrap();
    assert_eq!((device.poll(), device.next_event_ns()), (None, None));
    device.write(3, 8192, &[7; 1000]).unwrap();
    assert_eq!(device.next_event_ns(), Some(0));
    assert_eq!((device.poll(), device.poll()), (Some(3), None));
    let mut out = [0; 1002];
    device.read(4, 8191, &mut out).unwrap();
    assert_eq!((out[0], out[1], out[1000], out[1001]), (0, 7, 7, 0));
    device.discard(8192, 500).unwrap();
    device.read(5, 8191, &mut out).unwrap();
    assert_eq!((out[500], out[501]), (0, 7));
    assert_eq!(device.outstanding(), 2);
}

#[test]
fn acknowledged_writes_and_counters_are_those_of_the_model() {
    let clock = Arc::new(Clock::new_virtual());
    let mut device = LiveDevice::open(spec("nand-p3700"), &config(), Arc::clone(&clock)).unwrap();
    device.write(0, 0, &[1; 4096]).unwrap();
    device.read(1, 4096, &mut [0; 4096]).unwrap();
    assert_eq!(device.poll(), None, "nothing is due yet");
    let mut tags = Vec::new();
    while let Some(due_ns) = device.next_event_ns() {
        clock.wait_until(due_ns);
        tags.extend(std::iter::from_fn(|| device.poll()));
    }
    assert_eq!(tags, [0, 1], "a buffered write is acknowledged long before a read of the media");
    let stats = device.stats();
    assert_eq!((stats.counters.reads, stats.counters.writes), (1, 1));
    assert_eq!(device.lateness().late_requests, 0);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let open = |name: &str, config: &LiveConfig| {
        LiveDevice::open(spec(name), config, Arc::new(Clock::new_virtual())).map(drop).map_err(|error| error.kind())
    };
    assert_eq!(open("pmem-100", &config()), Err(ErrorKind::Config));
    assert_eq!(open("nand-p3700", &LiveConfig { capacity_bytes: 0, ..config() }), Err(ErrorKind::Capacity));
    assert_eq!(open("nand-p3700", &LiveConfig { capacity_bytes: 1 << 50, ..config() }), Err(ErrorKind::Capacity));
    let mut device = LiveDevice::open(spec("nand-p3700"), &config(), Arc::new(Clock::new_virtual())).unwrap();
    for (offset, nbytes) in [(SPAN, 1), (SPAN - 1, 2), (u64::MAX, 1), (0, 0)] {
        assert_eq!(device.read(0, offset, &mut vec![0; nbytes]).unwrap_err().kind(), ErrorKind::Input);
        assert_eq!(device.write(0, offset, &vec![0; nbytes]).unwrap_err().kind(), ErrorKind::Input);
    }
    assert_eq!(device.outstanding(), 0, "what was refused does not come back");
}
