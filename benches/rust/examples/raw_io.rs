//! Random reads of a file by one of the file backends, as fast as they go; `benches/python/raw_io.py` runs it
//! beside fio. `raw_io FILE ENGINE DIRECT IO_DEPTH BLOCK_BYTES SECONDS SEED` prints one line of JSON.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program of a bench")]

use std::path::Path;
use std::time::Instant;

use tiermem_core::backend::{Backend, BackendConfig, Extent, IoBatch, Operation, open_file};
use tiermem_core::rng::draw;

/// Bytes of one batch; two are in flight, so that the queue never runs dry between them.
const BATCH_BYTES: usize = 1 << 20;

fn batch(backend: &dyn Backend, block_bytes: usize) -> IoBatch {
    let count = (BATCH_BYTES / block_bytes).max(1);
    let extent = |n: usize| Extent { offset: 0, buffer_offset: n * block_bytes, nbytes: block_bytes };
    IoBatch { buffer: backend.buffer(count * block_bytes), extents: (0..count).map(extent).collect() }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, engine, direct, io_depth, block_bytes, seconds, seed] = &arguments[..] else {
        panic!("raw_io FILE ENGINE DIRECT IO_DEPTH BLOCK_BYTES SECONDS SEED");
    };
    let config: BackendConfig = serde_json::from_value(serde_json::json!({
        "engine": engine, "direct": direct, "io_depth": io_depth.parse::<u32>().unwrap()
    }))
    .unwrap();
    let block_bytes: usize = block_bytes.parse().unwrap();
    let (seconds, seed): (f64, u64) = (seconds.parse().unwrap(), seed.parse().unwrap());
    let backend = open_file(&config, Path::new(path)).unwrap();
    let blocks = backend.len_bytes() / block_bytes as u64;
    let mut number = 0;
    let mut start = |mut batch: IoBatch| {
        for extent in &mut batch.extents {
            extent.offset = draw(seed, number) % blocks * block_bytes as u64;
            number += 1;
        }
        backend.start(Operation::Read, batch)
    };
    let mut ahead = start(batch(backend.as_ref(), block_bytes));
    let mut spare = batch(backend.as_ref(), block_bytes);
    let (began, mut reads) = (Instant::now(), 0);
    while began.elapsed().as_secs_f64() < seconds {
        let next = start(spare);
        let (done, result) = ahead.wait();
        result.unwrap();
        reads += done.extents.len();
        spare = done;
        ahead = next;
    }
    let iops = reads as f64 / began.elapsed().as_secs_f64();
    let _ = ahead.wait();
    let info = backend.info();
    println!(
        "{}",
        serde_json::json!({
            "iops": iops, "engine": info.engine, "direct": info.direct,
            "registered_buffers": info.registered_buffers, "fallback_reason": info.fallback_reason,
        })
    );
}
