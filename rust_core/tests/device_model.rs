//! The timing model against closed forms and laws of queueing.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use tiermem_core::device::{
    Arrival, BackgroundSpec, DeviceSpec, DeviceState, Operation, Pattern, PointResult, Request, Schedule, TimedDevice,
    Workload, run_virtual,
};
use tiermem_core::units::transfer_ns;

fn text(name: &str) -> String {
    let path = format!("{}/../emulator_configs/devices/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

fn device(name: &str) -> DeviceSpec {
    DeviceSpec::from_toml(&text(name)).unwrap()
}

/// A device without tails and without background work, whose numbers are round.
fn plain() -> DeviceSpec {
    let mut spec = device("nand-p3700");
    spec.read.latency_quantiles_ns.clear();
    spec.read.latency_max_ns = 0;
    spec.background = None;
    spec.units = 8;
    spec
}

fn schedule(spec: &DeviceSpec, queue_depth: usize, seed: u64) -> Schedule {
    Schedule::new(vec![TimedDevice { queue_depth, ..TimedDevice::new(spec.clone()) }], seed)
}

fn request(operation: Operation, offset: u64, nbytes: u64) -> Request {
    Request { device: 0, operation, offset, nbytes }
}

fn load(spec: &DeviceSpec, read_percent: u32, queue_depth: u32, operations: u64) -> PointResult {
    let workload = Workload {
        pattern: Pattern::Random,
        read_percent,
        block_bytes: 4096,
        span_bytes: spec.capacity_bytes / 4096 * 4096,
        arrival: Arrival::QueueDepth(queue_depth),
        operations,
        warm_up: None,
        seed: 42,
    };
    run_virtual(spec, &workload, &mut || Ok(())).unwrap()
}

#[test]
fn one_request_takes_the_latency_of_the_specification() {
    let point = load(&plain(), 100, 1, 1000);
    assert_eq!(point.latency.summary().mean_ns, 77_900);
    assert!((point.iops() * 77_900e-9 - 1.0).abs() < 1e-5);
}

#[test]
fn littles_law_holds_at_every_depth_and_mix() {
    for read_percent in [100, 70, 0] {
        for depth in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
            let point = load(&device("nand-p3700"), read_percent, depth, 100_000);
            let outstanding = point.iops() * point.latency.summary().mean_ns as f64 * 1e-9;
            // The mean is rounded down to a nanosecond, and the window cuts requests at both ends.
            assert!((outstanding / f64::from(depth) - 1.0).abs() < 0.01, "{read_percent} % at {depth}: {outstanding}");
        }
    }
}

#[test]
fn an_open_loop_serves_what_arrives_and_says_when_it_cannot() {
    let spec = device("nand-p3700");
    let open = |rate| {
        let workload = Workload {
            pattern: Pattern::Random,
            read_percent: 100,
            block_bytes: 4096,
            span_bytes: 1 << 36,
            arrival: Arrival::RatePerSecond(rate),
            operations: 100_000,
            warm_up: None,
            seed: 1,
        };
        run_virtual(&spec, &workload, &mut || Ok(())).unwrap()
    };
    let light = open(1_000.0);
    assert!((light.iops() / 1_000.0 - 1.0).abs() < 0.01 && !light.saturated);
    // One request in thirteen finds another one on the drive at most; almost nobody waits.
    assert!((light.latency.summary().mean_ns as f64 / 77_900.0 - 1.0).abs() < 0.01);
    let loaded = open(200_000.0);
    assert!(loaded.latency.summary().mean_ns > light.latency.summary().mean_ns && !loaded.saturated);
    let beyond = open(1_000_000.0);
    assert!(beyond.saturated && beyond.iops() < 470_000.0);
}

#[test]
fn an_open_loop_of_constant_service_is_an_m_d_1_queue() {
    // One unit, no controller and a fast link: Pollaczek-Khinchine gives the wait, rho S / 2 (1 - rho).
    let mut spec = plain();
    (spec.units, spec.read.command_ns, spec.read.bandwidth_bytes_per_s) = (1, 0, 1 << 49);
    let service_ns = (spec.read.latency_ns - spec.read_fixed_ns(4096)) as f64;
    for load in [0.3, 0.6, 0.8] {
        let workload = Workload {
            pattern: Pattern::Random,
            read_percent: 100,
            block_bytes: 4096,
            span_bytes: 1 << 36,
            arrival: Arrival::RatePerSecond(load / service_ns * 1e9),
            operations: 1_000_000,
            warm_up: None,
            seed: 5,
        };
        let found = run_virtual(&spec, &workload, &mut || Ok(())).unwrap().latency.summary().mean_ns as f64;
        let expected = spec.read.latency_ns as f64 + load * service_ns / (2.0 * (1.0 - load));
        assert!((found / expected - 1.0).abs() < 0.02, "load {load}: {found} against {expected}");
    }
}

#[test]
fn the_controller_and_the_link_cap_the_rate() {
    let mut spec = plain();
    spec.units = 100_000;
    let rate = load(&spec, 100, 4096, 400_000).iops();
    assert!((rate / 460_000.0 - 1.0).abs() < 0.001, "bound by the controller: {rate}");
    spec.read.command_ns = 1;
    let rate = load(&spec, 100, 4096, 400_000).iops();
    assert!((rate * 4096.0 / 2.8e9 - 1.0).abs() < 0.001, "bound by the link: {rate}");
    (spec.read.small_bytes, spec.read.small_command_ns) = (4096, 4_000);
    let rate = load(&spec, 100, 4096, 400_000).iops();
    assert!((rate / 250_000.0 - 1.0).abs() < 0.001, "bound by small commands: {rate}");
}

#[test]
fn latency_by_size_follows_the_table() {
    let mut spec = plain();
    spec.read.latency_by_bytes_ns = vec![(512, 90_000), (4096, 77_900), (8192, 100_000)];
    spec.validate().unwrap();
    for (nbytes, expected) in [(512, 90_000), (4096, 77_900), (6144, 88_950), (8192, 100_000)] {
        let mut schedule = schedule(&spec, 1, 1);
        let handle = schedule.submit(0, &[request(Operation::Read, 0, nbytes)]);
        let took = schedule.finish(handle);
        assert!(took.abs_diff(expected) <= 1, "{nbytes} bytes took {took}, the table says {expected}");
    }
}

#[test]
fn a_sub_block_read_pays_the_granule_on_the_medium_and_its_bytes_on_the_link() {
    let spec = plain();
    let time = |nbytes| {
        let mut schedule = schedule(&spec, 1, 1);
        let handle = schedule.submit(0, &[request(Operation::Read, 4096, nbytes)]);
        (schedule.finish(handle), schedule.snapshot(0).counters)
    };
    let ((whole, of_whole), (part, of_part)) = (time(4096), time(128));
    let saved = transfer_ns(4096, 2_800_000_000) - transfer_ns(128, 2_800_000_000);
    assert!((whole - part).abs_diff(saved) <= 1, "{whole} - {part} against {saved}");
    assert_eq!((of_whole.media_read_bytes, of_part.media_read_bytes), (4096, 4096));
    assert_eq!((of_whole.read_bytes, of_part.read_bytes), (4096, 128));
}

#[test]
fn a_slow_request_does_not_hold_the_link() {
    // The trap of charging the link at submission (reference notes, C3): one very slow read must
    // not delay the others, which are on other units.
    let mut spec = plain();
    spec.units = 1024;
    let mut schedule = schedule(&spec, 64, 1);
    let slow: Vec<Request> = (0..50).map(|_| request(Operation::Read, 0, 4096)).collect();
    let slow = schedule.submit(0, &slow);
    let fast = schedule.submit(0, &[request(Operation::Read, 16_384, 4096)]);
    assert!(schedule.finish(fast) < 200_000, "the read of another unit is not behind the queue of unit 0");
    assert!(schedule.finish(slow) > 3_000_000, "50 reads of one page are served one after the other");
}

#[test]
fn writes_are_fast_until_the_buffer_is_full_and_then_drain() {
    let mut spec = plain();
    spec.write.sequential_drain_bytes_per_s = 0;
    let mut schedule = schedule(&spec, 4, 1);
    // Every other block, so that no write is sequential.
    let write = |n: u64| request(Operation::Write, n * 131_072, 65_536);
    let one = schedule.submit(0, &[write(0)]);
    let first = schedule.finish(one);
    assert!(first < 70_000, "acknowledged from the buffer: {first}");
    let count = 4096u64;
    let batch = schedule.submit(first, &(1..=count).map(write).collect::<Vec<_>>());
    let took = (schedule.finish(batch) - first) as f64;
    let expected = (count * 65_536 - spec.write.buffer_bytes) as f64 / spec.write.drain_bytes_per_s as f64 * 1e9;
    assert!((took / expected - 1.0).abs() < 0.02, "{took} against {expected}");
}

#[test]
fn a_fresh_device_and_sequential_writes_drain_fast_and_a_steady_one_amplifies() {
    let mut spec = device("nand-p3700");
    let steady = load(&spec, 0, 128, 50_000);
    assert!((steady.iops() / 90_000.0 - 1.0).abs() < 0.01, "{}", steady.iops());
    assert!((steady.stats.wear.write_amplification - 3.0).abs() < 1e-9);
    spec.state = DeviceState::Fresh;
    let fresh = load(&spec, 0, 128, 50_000);
    assert!(fresh.iops() > 4.0 * steady.iops(), "{}", fresh.iops());
    assert!((fresh.stats.wear.write_amplification - 1.0).abs() < 1e-9);
}

fn with_background(work: BackgroundSpec) -> DeviceSpec {
    let mut spec = plain();
    spec.units = 1;
    spec.background = Some(work);
    spec.write.sequential_drain_bytes_per_s = 0;
    spec.write.drain_bytes_per_s = 30_000_000;
    spec.wear.write_amplification_percent = 100;
    spec
}

fn program(program_suspend_ns: u64) -> BackgroundSpec {
    BackgroundSpec {
        program_bytes: 65_536,
        program_ns: 1_000_000,
        program_suspend_ns,
        erase_bytes: 0,
        erase_ns: 0,
        erase_suspend_ns: 0,
        stall_every_bytes: 0,
        stall_ns: 0,
    }
}

/// Latency of a read that comes `after_ns` after the program of a 64 KiB write has begun.
fn read_behind_program(spec: &DeviceSpec, after_ns: u64) -> u64 {
    let mut schedule = schedule(spec, 8, 1);
    let write = schedule.submit(0, &[request(Operation::Write, 0, 65_536)]);
    schedule.detach(write);
    let drained_ns = spec.host.submit_ns
        + spec.write.command_ns
        + transfer_ns(65_536, spec.write.bandwidth_bytes_per_s)
        + transfer_ns(65_536, spec.write.drain_bytes_per_s);
    let begin = drained_ns + after_ns;
    let read = schedule.submit(begin, &[request(Operation::Read, 1 << 20, 4096)]);
    schedule.finish(read) - begin
}

#[test]
fn a_read_waits_for_a_program_on_its_unit_or_for_its_suspension() {
    let spec = with_background(program(1_000_000));
    spec.validate().unwrap();
    let host = spec.host.submit_ns;
    // Not suspended: what is left of the program, then the read.
    assert!(read_behind_program(&spec, 300_000).abs_diff(700_000 - host + 77_900) < 5);
    // Suspended after 100 us, whatever is left ...
    let spec = with_background(program(100_000));
    assert!(read_behind_program(&spec, 300_000).abs_diff(100_000 + 77_900) < 5);
    // ... unless less than that is left.
    assert!(read_behind_program(&spec, 950_000).abs_diff(50_000 - host + 77_900) < 5);
    // Before and after the program nobody waits.
    assert!(read_behind_program(&spec, 1_100_000).abs_diff(77_900) < 5);
}

#[test]
fn reads_that_queue_behind_one_that_suspended_a_program_do_not_suspend_it_again() {
    let spec = with_background(program(100_000));
    let mut schedule = schedule(&spec, 8, 1);
    let write = schedule.submit(0, &[request(Operation::Write, 0, 65_536)]);
    schedule.detach(write);
    let begin = 2_600_000;
    let reads = [request(Operation::Read, 0, 4096); 3];
    let handle = schedule.submit(begin, &reads);
    let media_ns = spec.read.latency_ns - spec.read_fixed_ns(4096);
    let took = schedule.finish(handle) - begin;
    assert!(took.abs_diff(100_000 + 77_900 + 2 * media_ns) < 5, "{took}");
}

#[test]
fn a_read_goes_before_work_that_has_not_begun() {
    // One read keeps the unit busy as a program falls due, another waits for the unit: the program lets both go.
    let spec = with_background(program(100_000));
    let mut schedule = schedule(&spec, 8, 1);
    let write = schedule.submit(0, &[request(Operation::Write, 0, 65_536)]);
    schedule.detach(write);
    let due = spec.host.submit_ns
        + spec.write.command_ns
        + transfer_ns(65_536, spec.write.bandwidth_bytes_per_s)
        + transfer_ns(65_536, spec.write.drain_bytes_per_s);
    let first = schedule.submit(due - 50_000, &[request(Operation::Read, 0, 4096)]);
    let second = schedule.submit(due + 5_000, &[request(Operation::Read, 0, 4096)]);
    let media_ns = spec.read.latency_ns - spec.read_fixed_ns(4096);
    let first_end = schedule.finish(first);
    let second_end = schedule.finish(second);
    assert!(first_end.abs_diff(due - 50_000 + 77_900) < 5, "{first_end}");
    assert!(second_end.abs_diff(first_end + media_ns) < 5, "{second_end} after {first_end}");
}

#[test]
fn stalls_follow_the_bytes_written_however_large_the_writes_are() {
    let work = BackgroundSpec { stall_every_bytes: 1 << 18, stall_ns: 1_000_000, ..program(100_000) };
    let mut spec = with_background(work);
    spec.units = 42;
    let busy = |spec: &DeviceSpec, block_bytes| {
        let workload = Workload {
            pattern: Pattern::Random,
            read_percent: 0,
            block_bytes,
            span_bytes: 1 << 36,
            arrival: Arrival::QueueDepth(4),
            operations: (1 << 28) / block_bytes,
            warm_up: None,
            seed: 3,
        };
        let stats = run_virtual(spec, &workload, &mut || Ok(())).unwrap().stats;
        stats.counters.media_background_busy_ps as f64 / stats.counters.write_bytes as f64
    };
    let (small, large) = (busy(&spec, 4096), busy(&spec, 1 << 22));
    assert!((small / large - 1.0).abs() < 0.05, "busy a byte: {small} in small writes, {large} in large ones");
}

#[test]
fn an_overloaded_open_loop_ends_and_virtual_time_has_an_end() {
    let spec = device("nand-p3700");
    let open = |rate, operations| {
        let workload = Workload {
            pattern: Pattern::Random,
            read_percent: 100,
            block_bytes: 4096,
            span_bytes: 1 << 36,
            arrival: Arrival::RatePerSecond(rate),
            operations,
            warm_up: Some(0),
            seed: 1,
        };
        run_virtual(&spec, &workload, &mut || Ok(()))
    };
    assert!(open(1e12, 10_000).unwrap().saturated);
    assert!(!open(1_000.0, 1_000).unwrap().saturated);
    let text = open(0.001, 20_000).unwrap_err().to_string();
    assert!(text.contains("more virtual time than 53 days"), "{text}");
    let text = open(1e12, 1 << 30).unwrap_err().to_string();
    assert!(text.contains("too many wait"), "{text}");
}

#[test]
fn stalls_come_with_the_write_rate_and_lengthen_the_tail_of_reads() {
    let mut spec =
        with_background(BackgroundSpec { stall_every_bytes: 1 << 20, stall_ns: 20_000_000, ..program(100_000) });
    spec.units = 42;
    let tail =
        |spec: &DeviceSpec, read_percent| load(spec, read_percent, 8, 200_000).stats.read_latency.summary().p999_ns;
    let (rare, often) = (tail(&spec, 99), tail(&spec, 90));
    assert!(often > 2 * rare.min(10_000_000), "p99.9 of reads: {rare} with 1 % writes, {often} with 10 %");
    spec.state = DeviceState::Fresh;
    assert!(tail(&spec, 90) < often, "a fresh device collects no garbage");
}

#[test]
fn acknowledgements_follow_their_quantiles() {
    let mut spec = plain();
    spec.write.acknowledge_quantiles_ns = vec![(0.5, 24_000), (0.99, 60_000)];
    spec.write.acknowledge_max_ns = 1_000_000;
    spec.validate().unwrap();
    // Slow enough that the buffer never fills.
    spec.write.drain_bytes_per_s = 1 << 40;
    let found = load(&spec, 0, 1, 200_000).latency.summary();
    let fixed = 30_000 - spec.write.acknowledge_ns;
    for (found, point) in [(found.p50_ns, 24_000), (found.p99_ns, 60_000)] {
        assert!((found as f64 / (point + fixed) as f64 - 1.0).abs() < 0.02, "{found} against {}", point + fixed);
    }
}

#[test]
fn a_follower_starts_when_its_predecessor_ends() {
    let mut schedule = schedule(&plain(), 8, 1);
    let read = schedule.submit(0, &[request(Operation::Read, 0, 4096)]);
    let write = schedule.submit_after(read, 0, vec![request(Operation::Write, 0, 4096)]);
    let write_end = schedule.finish(write);
    let read_end = schedule.finish(read);
    assert!(write_end > read_end + 20_000);
}

#[test]
fn a_follower_on_another_device_starts_in_order_of_time() {
    // The fast device must not run ahead of what the slow one will send it.
    let fast = TimedDevice::new(device("optane-p4800x"));
    let mut schedule = Schedule::new(vec![TimedDevice::new(plain()), fast], 3);
    let on = |device, offset| Request { device, operation: Operation::Read, offset, nbytes: 4096 };
    let first = schedule.submit(0, &[on(0, 0)]);
    let second = schedule.submit_after(first, 0, vec![on(1, 0)]);
    let busy = schedule.submit(0, &(0..1000).map(|n| on(1, n * 4096)).collect::<Vec<_>>());
    let second_end = schedule.finish(second);
    let first_end = schedule.finish(first);
    assert!(second_end > first_end, "{second_end} after {first_end}");
    assert!(second_end > first_end + 8_000);
    schedule.finish(busy);
}

#[test]
fn results_do_not_depend_on_how_time_is_sliced() {
    let run = |slices: bool| {
        let mut schedule = schedule(&device("nand-p3700"), 16, 5);
        let mut handles = Vec::new();
        for batch in 0..200u64 {
            let now = batch * 100_000;
            if slices {
                (0..10).for_each(|part| schedule.advance_to(now.saturating_sub(100_000) + part * 10_000));
            }
            let requests: Vec<Request> = (0..20)
                .map(|n| {
                    let operation = if n % 3 == 0 { Operation::Write } else { Operation::Read };
                    request(operation, (batch * 31 + n * 7) * 4096, 4096)
                })
                .collect();
            handles.push(schedule.submit(now, &requests));
        }
        handles.into_iter().map(|handle| schedule.finish(handle)).collect::<Vec<_>>()
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn a_read_of_two_pages_waits_for_both() {
    // A draw below the base shortens the access that ends last; the other page still takes the base.
    let mut spec = device("nand-p3700");
    spec.background = None;
    let nbytes = 8192;
    let media_ns = spec.read.latency_ns - spec.read_fixed_ns(4096);
    let least = spec.read_fixed_ns(nbytes) + media_ns;
    let mut schedule = schedule(&spec, 1, 3);
    let mut now = 0;
    for n in 1..2000u64 {
        let offset = n * spec.page_bytes - nbytes / 2;
        let handle = schedule.submit(now, &[request(Operation::Read, offset, nbytes)]);
        let end = schedule.finish(handle);
        assert!(end - now + 2 >= least, "read {n} took {} ns, one page alone takes {least}", end - now);
        now = end;
    }
}

#[test]
fn a_batch_on_a_memory_with_units_is_bound_by_latency_and_then_by_units() {
    let spec = device("pmem-100");
    let time = |count| schedule(&spec, 170, 1).run_scattered(0, 0, Operation::Read, count, 64);
    assert!(time(1).abs_diff(305) <= 1);
    // 64-byte reads get a quarter of the medium's bandwidth: published 9.75 GB/s.
    let gigabytes_per_s = 1e6 * 64.0 / time(1_000_000) as f64;
    assert!((gigabytes_per_s / 9.75 - 1.0).abs() < 0.06, "{gigabytes_per_s}");
    // A row of 1 KiB is four accesses, and a random write of one is not sequential within itself.
    let mut amplified = spec.clone();
    amplified.wear.write_amplification_percent = 400;
    let mut four = schedule(&amplified, 170, 1);
    four.run_scattered(0, 0, Operation::Write, 100, 1024);
    let counters = four.snapshot(0).counters;
    assert_eq!((counters.writes, counters.media_write_bytes), (400, 4 * 400 * 256));
    // A row of 128 bytes that begins on a page is one access of 256 bytes on the medium.
    let mut two = schedule(&spec, 170, 1);
    two.run_scattered(0, 0, Operation::Read, 1, 128);
    assert_eq!((two.snapshot(0).counters.reads, two.snapshot(0).counters.media_read_bytes), (1, 256));
}

#[test]
fn a_batch_on_a_memory_with_curves_obeys_littles_law_and_the_end_of_the_curve() {
    let spec = device("dram-ddr4-2933");
    let time = |count: u64| schedule(&spec, 160, 1).run_scattered(0, 0, Operation::Read, count, 64);
    assert!(time(1).abs_diff(90) <= 1, "{}", time(1));
    // 160 lines of 64 bytes outstanding: X L(X) = 10,240 bytes, which is 80.55 GB/s at 127.1 ns.
    let gigabytes_per_s = 64e6 / time(1_000_000) as f64;
    assert!((gigabytes_per_s / 80.55 - 1.0).abs() < 0.01, "{gigabytes_per_s}");
    let mut wide = schedule(&spec, 100_000, 1);
    let saturated = 64e6 / wide.run_scattered(0, 0, Operation::Read, 1_000_000, 64) as f64;
    assert!((saturated / 106.0 - 1.0).abs() < 0.01, "{saturated}");
}
