//! Cost of the timing model per request, in host time.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tiermem_core::device::{DeviceSpec, Operation, Request, Schedule, TimedDevice};
use tiermem_core::rng::draw;

fn device(name: &str) -> DeviceSpec {
    let path = format!("{}/../../emulator_configs/devices/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    DeviceSpec::from_toml(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn random_reads(criterion: &mut Criterion) {
    const REQUESTS: u64 = 10_000;
    let mut group = criterion.benchmark_group("device_model/random_read");
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

criterion_group!(benches, random_reads);
criterion_main!(benches);
