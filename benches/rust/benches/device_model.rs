//! Cost of the timing model per request, in host time. The target is 60 ns a random read of 4 KiB at
//! queue depth 32, with tails and histogram on; the deeper queue and the larger request stand beside it.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tiermem_core::device::{
    Arrival, DeviceSpec, Operation, Pattern, QuantileTable, Request, Schedule, TimedDevice, Workload, run_virtual,
};
use tiermem_core::rng::draw;

const REQUESTS: u64 = 10_000;
/// Many enough that making the queue and its histograms does not count.
const OPERATIONS: u64 = 1_000_000;

fn device(name: &str) -> DeviceSpec {
    let path = format!("{}/../../emulator_configs/devices/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    DeviceSpec::from_toml(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A closed loop on one device: the model and nothing else.
fn loads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("device_model/load");
    group.throughput(Throughput::Elements(OPERATIONS));
    group.sample_size(10);
    for (name, read_percent, queue_depth, block_bytes) in [
        ("nand-p3700", 100, 32, 4096),
        ("nand-p3700", 100, 256, 4096),
        ("nand-p3700", 100, 32, 131_072),
        ("nand-p3700", 70, 32, 4096),
        ("nand-p3700", 0, 32, 4096),
        ("optane-p4800x", 100, 32, 4096),
        ("znand-sz985", 100, 32, 4096),
        ("pmem-100", 100, 170, 64),
    ] {
        let spec = device(name);
        let workload = Workload {
            pattern: Pattern::Random,
            read_percent,
            block_bytes,
            span_bytes: 4096 * 1_000_000,
            arrival: Arrival::QueueDepth(queue_depth),
            operations: OPERATIONS,
            warm_up: Some(0),
            seed: 1,
        };
        let label = format!("{name}/reads={read_percent}/queue_depth={queue_depth}/nbytes={block_bytes}");
        group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
            bencher.iter(|| run_virtual(&spec, &workload, &mut || Ok(())).unwrap().elapsed_ps);
        });
    }
    group.finish();
}

/// Batches of a schedule, as the store submits them: the model and the accounting of batches.
fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("device_model/batch");
    group.throughput(Throughput::Elements(REQUESTS));
    for (name, queue_depth, nbytes) in
        [("nand-p3700", 32, 4096), ("nand-p3700", 256, 4096), ("nand-p3700", 32, 131_072), ("optane-p4800x", 32, 4096)]
    {
        let spec = device(name);
        let requests: Vec<Request> = (0..REQUESTS)
            .map(|n| Request { device: 0, operation: Operation::Read, offset: draw(1, n) % 1_000_000 * 4096, nbytes })
            .collect();
        let label = format!("{name}/queue_depth={queue_depth}/nbytes={nbytes}");
        group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
            let device = TimedDevice { queue_depth, ..TimedDevice::new(spec.clone()) };
            let mut schedule = Schedule::new(vec![device], 1);
            let mut now_ns = 0;
            bencher.iter(|| {
                let handle = schedule.submit(now_ns, &requests);
                now_ns = schedule.finish(handle);
                now_ns
            });
        });
    }
    group.finish();
}

/// Row reads of memories: one call a batch; with curves its cost does not depend on the rows.
fn memories(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("device_model/memory");
    group.throughput(Throughput::Elements(REQUESTS));
    for name in ["dram-ddr4-2933", "cxl-asic", "pmem-100"] {
        let device = TimedDevice::new(device(name));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let mut schedule = Schedule::new(vec![device.clone()], 1);
            let mut now_ns = 0;
            bencher.iter(|| {
                now_ns = schedule.run_scattered(0, now_ns, Operation::Read, REQUESTS, 128);
                now_ns
            });
        });
    }
    group.finish();
}

fn draws(criterion: &mut Criterion) {
    let table = QuantileTable::new(70_000, &[(0.5, 76_000), (0.99, 96_000), (0.99999, 2_768_000)], 10_000_000);
    let mut group = criterion.benchmark_group("device_model/latency_draw");
    group.throughput(Throughput::Elements(REQUESTS));
    group.bench_function("quantiles", |bencher| {
        bencher.iter(|| (0..REQUESTS).map(|n| table.sample(draw(3, n))).sum::<u64>());
    });
    group.finish();
}

criterion_group!(benches, loads, batches, memories, draws);
criterion_main!(benches);
