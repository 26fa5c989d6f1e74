//! One contract, run by every backend.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use tiermem_core::ErrorKind;
use tiermem_core::backend::{
    AlignedBuffer, Backend, BackendConfig, CompletionMode, DirectIo, Engine, Extent, IoBatch, Operation,
    PhantomBackend, RamBackend, open_backend, probe_io_uring,
};
use tiermem_core::rng::draw;
use tiermem_core::testkit::{Counted, CountingBackend, CrashingBackend, FailingBackend};

const LEN: u64 = 4 << 20;
const BLOCK: usize = 4096;

fn batch(blocks: &[u64], fill: impl Fn(u64) -> u8) -> IoBatch {
    let mut buffer = AlignedBuffer::zeroed(blocks.len() * BLOCK);
    let mut extents = Vec::new();
    for (position, &block) in blocks.iter().enumerate() {
        buffer[position * BLOCK..(position + 1) * BLOCK].fill(fill(block));
        extents.push(Extent { offset: block * BLOCK as u64, buffer_offset: position * BLOCK, nbytes: BLOCK });
    }
    IoBatch { buffer, extents }
}

fn check_contract(backend: &dyn Backend) {
    assert_eq!(backend.len_bytes(), LEN);
    assert!(backend.alignment_bytes().is_power_of_two() && BLOCK.is_multiple_of(backend.alignment_bytes()));

    // Bytes never written are zero.
    let (read, result) = backend.read(batch(&[7, 0, 1023], |_| 0xaa));
    result.unwrap();
    assert!(read.buffer.iter().all(|&byte| byte == 0));

    // What was written is read, in any order and across chunk borders; more than a ring's worth of requests.
    let blocks: Vec<u64> = (0..600).map(|n| (n * 397) % 1024).collect();
    let (_, result) = backend.write(batch(&blocks, |block| block as u8 ^ 0x5a));
    result.unwrap();
    backend.sync().unwrap();
    let mut shuffled = blocks.clone();
    shuffled.sort_by_key(|&block| draw(1, block));
    let (read, result) = backend.read(batch(&shuffled, |_| 0));
    result.unwrap();
    for (position, &block) in shuffled.iter().enumerate() {
        assert!(
            read.buffer[position * BLOCK..(position + 1) * BLOCK].iter().all(|&byte| byte == block as u8 ^ 0x5a),
            "block {block}"
        );
    }

    // One large extent.
    let large = |byte| {
        let mut buffer = AlignedBuffer::zeroed(2 << 20);
        buffer.fill(byte);
        IoBatch { buffer, extents: vec![Extent { offset: 1 << 20, buffer_offset: 0, nbytes: 2 << 20 }] }
    };
    backend.write(large(3)).1.unwrap();
    let (read, result) = backend.read(large(0));
    result.unwrap();
    assert!(read.buffer.iter().all(|&byte| byte == 3));

    check_in_flight(backend);
    check_discard(backend);
    check_refusals(backend);
}

/// Several batches at once, waited for in another order, and one of which nobody asks.
fn check_in_flight(backend: &dyn Backend) {
    let of_own_memory = |first: u64, fill: u8| {
        let mut buffer = backend.buffer(64 * BLOCK);
        assert_eq!(buffer.len(), 64 * BLOCK);
        buffer.fill(fill);
        let extent =
            |n: usize| Extent { offset: (first + n as u64) * BLOCK as u64, buffer_offset: n * BLOCK, nbytes: BLOCK };
        IoBatch { buffer, extents: (0..64).map(extent).collect() }
    };
    let first = backend.start(Operation::Write, of_own_memory(0, 1));
    let second = backend.start(Operation::Write, of_own_memory(64, 2));
    drop(backend.start(Operation::Write, of_own_memory(128, 3)));
    second.wait().1.unwrap();
    first.wait().1.unwrap();
    let reads: Vec<_> =
        [0, 64].map(|block| backend.start(Operation::Read, of_own_memory(block, 0xee))).into_iter().collect();
    for (read, expected) in reads.into_iter().zip([1, 2]).rev() {
        let (batch, result) = read.wait();
        result.unwrap();
        assert!(batch.buffer.iter().all(|&byte| byte == expected));
    }
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            scope.spawn(move || {
                for round in 0..8 {
                    let fill = thread * 8 + round;
                    backend.write(of_own_memory(200 + u64::from(thread) * 64, fill)).1.unwrap();
                    let (batch, result) = backend.read(of_own_memory(200 + u64::from(thread) * 64, 0xee));
                    result.unwrap();
                    assert!(batch.buffer.iter().all(|&byte| byte == fill), "thread {thread}, round {round}");
                }
            });
        }
    });
}

fn check_discard(backend: &dyn Backend) {
    backend.write(batch(&[100, 101, 102], |_| 7)).1.unwrap();
    backend.discard(101 * BLOCK as u64, BLOCK as u64).unwrap();
    let (read, result) = backend.read(batch(&[100, 101, 102], |_| 9));
    result.unwrap();
    for (position, expected) in [7, 0, 7].into_iter().enumerate() {
        assert!(read.buffer[position * BLOCK..(position + 1) * BLOCK].iter().all(|&byte| byte == expected));
    }
    backend.discard(0, LEN).unwrap();
    let (read, result) = backend.read(batch(&[0, 100, 1023], |_| 9));
    result.unwrap();
    assert!(read.buffer.iter().all(|&byte| byte == 0));
    backend.discard(LEN, 0).unwrap();
}

fn check_refusals(backend: &dyn Backend) {
    let outside = Extent { offset: LEN - 4096, buffer_offset: 0, nbytes: 8192 };
    let no_memory = Extent { offset: 0, buffer_offset: 4096, nbytes: 8192 };
    let overflow = Extent { offset: u64::MAX - 4095, buffer_offset: 0, nbytes: 4096 };
    for extent in [outside, no_memory, overflow] {
        let request = || IoBatch { buffer: AlignedBuffer::zeroed(8192), extents: vec![extent] };
        for (returned, result) in [backend.read(request()), backend.write(request())] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Input);
            assert_eq!(returned.buffer.len(), 8192, "the batch comes back");
        }
    }
    for (offset, nbytes) in [(0, LEN + 4096), (LEN, 4096), (u64::MAX - 4095, 8192)] {
        assert_eq!(backend.discard(offset, nbytes).unwrap_err().kind(), ErrorKind::Input);
    }
}

fn in_directory(engine: Engine, direct: DirectIo, directory: &Path) -> BackendConfig {
    BackendConfig { directory: Some(directory.to_owned()), direct, ..BackendConfig::new(engine) }
}

fn open(engine: Engine, direct: DirectIo, directory: &Path) -> Box<dyn Backend> {
    open_backend(&in_directory(engine, direct, directory), LEN).unwrap()
}

#[test]
fn ram() {
    check_contract(&RamBackend::new(LEN).unwrap());
}

#[test]
fn a_crashing_backend_is_one_until_it_crashes() {
    check_contract(&CrashingBackend::new(LEN).unwrap());
}

#[test]
fn a_crash_keeps_what_was_synced_and_each_later_sector_or_not() {
    let mut survived = 0;
    for seed in 0..20 {
        let backend = CrashingBackend::new(LEN).unwrap();
        backend.write(batch(&[1, 2], |_| 1)).1.unwrap();
        backend.sync().unwrap();
        backend.write(batch(&[2, 3], |_| 2)).1.unwrap();
        backend.crash(seed).unwrap();
        assert_eq!(backend.write(batch(&[1], |_| 9)).1.unwrap_err().kind(), ErrorKind::Closed);
        backend.restart().unwrap();
        let (read, result) = backend.read(batch(&[1, 2, 3], |_| 9));
        result.unwrap();
        let sectors: Vec<&[u8]> = read.buffer.chunks(512).collect();
        assert!(sectors.iter().all(|sector| sector.iter().all(|byte| *byte == sector[0])), "a sector is whole");
        assert!(sectors[..8].iter().all(|sector| sector[0] == 1));
        assert!(sectors[8..16].iter().all(|sector| [1, 2].contains(&sector[0])));
        assert!(sectors[16..].iter().all(|sector| [0, 2].contains(&sector[0])));
        survived += sectors[8..].iter().filter(|sector| sector[0] == 2).count();
    }
    // 320 sectors, each with one chance in two: 160 within five standard errors of 9.
    assert!((115..205).contains(&survived), "{survived}");
}

#[test]
fn a_counting_backend_counts_batches_extents_and_bytes() {
    let backend = CountingBackend::new(RamBackend::new(LEN).unwrap());
    backend.write(batch(&[1, 2, 3], |_| 1)).1.unwrap();
    backend.read(batch(&[1, 2], |_| 1)).1.unwrap();
    backend.read(batch(&[1], |_| 1)).1.unwrap();
    backend.discard(0, 4096).unwrap();
    backend.sync().unwrap();
    let expected = Counted {
        read_batches: 2,
        reads: 3,
        read_bytes: 3 * 4096,
        write_batches: 1,
        writes: 3,
        write_bytes: 3 * 4096,
        discards: 1,
        syncs: 1,
    };
    assert_eq!(backend.counted(), expected);
}

#[test]
fn file_direct_and_buffered() {
    let directory = tempfile::tempdir().unwrap();
    for direct in [DirectIo::Auto, DirectIo::Off] {
        let backend = open(Engine::File, direct, directory.path());
        check_contract(backend.as_ref());
        assert_eq!(backend.info().engine, "file");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "scratch files have no name");
}

#[test]
fn io_uring_direct_and_buffered() {
    let directory = tempfile::tempdir().unwrap();
    if let Err(reason) = probe_io_uring() {
        let backend = open(Engine::Auto, DirectIo::Auto, directory.path());
        assert!(!backend.info().fallback_reason.is_empty(), "a fallback says why");
        let config = in_directory(Engine::IoUring, DirectIo::Auto, directory.path());
        assert_eq!(open_backend(&config, LEN).map(drop).unwrap_err().kind(), ErrorKind::Unsupported, "{reason}");
        return;
    }
    for direct in [DirectIo::Auto, DirectIo::Off] {
        let backend = open(Engine::IoUring, direct, directory.path());
        check_contract(backend.as_ref());
        assert_eq!(backend.info().engine, "io_uring");
    }
    // Polled where drive and driver can, which is said.
    let completion = CompletionMode::Polling;
    for direct in [DirectIo::Auto, DirectIo::Off] {
        let config = BackendConfig { completion, ..in_directory(Engine::IoUring, direct, directory.path()) };
        let backend = open_backend(&config, LEN).unwrap();
        check_contract(backend.as_ref());
        let info = backend.info();
        let is_polled = info.completion == CompletionMode::Polling;
        assert_eq!(is_polled, !info.fallback_reason.contains("not by polling"), "{info:?}");
        assert!(info.direct || !is_polled, "{info:?}");
    }
    // A ring far smaller than the batches.
    let config = BackendConfig { io_depth: 3, ..in_directory(Engine::IoUring, DirectIo::Auto, directory.path()) };
    check_contract(open_backend(&config, LEN).unwrap().as_ref());
    let config = BackendConfig { io_depth: 0, ..config };
    assert_eq!(open_backend(&config, LEN).map(drop).unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn phantom_keeps_nothing_and_refuses_the_same() {
    let backend = PhantomBackend::new(LEN);
    backend.write(batch(&[1], |_| 9)).1.unwrap();
    let (read, result) = backend.read(batch(&[1], |_| 9));
    result.unwrap();
    assert!(read.buffer.iter().all(|&byte| byte == 0));
    check_refusals(&backend);
}

#[test]
fn a_failing_backend_fails_with_its_errno_and_keeps_what_was_written() {
    let backend = FailingBackend::after(1, libc::ENOSPC, RamBackend::new(LEN).unwrap());
    backend.write(batch(&[1], |_| 9)).1.unwrap();
    let error = backend.write(batch(&[2], |_| 9)).1.unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NoSpace, Some(libc::ENOSPC)));
}

#[test]
fn a_directory_that_does_not_exist_is_named() {
    let config = in_directory(Engine::File, DirectIo::Auto, Path::new("/nonexistent/place"));
    let error = open_backend(&config, LEN).map(drop).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/place"), "{error}");
}

#[test]
fn tmpfs_takes_or_refuses_direct_io_and_says_which() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return;
    }
    let required = open_backend(&in_directory(Engine::File, DirectIo::Require, shm), LEN);
    let auto = open(Engine::File, DirectIo::Auto, shm);
    match required {
        Ok(_) => assert!(auto.info().direct),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(!auto.info().direct && auto.info().fallback_reason.contains("O_DIRECT"));
        }
    }
    check_contract(auto.as_ref());
}
