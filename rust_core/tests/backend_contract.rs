//! One contract, run by every backend.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use tiermem_core::ErrorKind;
use tiermem_core::backend::{
    AlignedBuffer, Backend, BackendConfig, DirectIo, Engine, Extent, IoBatch, PhantomBackend, RamBackend, open_backend,
    probe_io_uring,
};
use tiermem_core::rng::draw;
use tiermem_core::testkit::FailingBackend;

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

    check_refusals(backend);
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
}

fn open(engine: Engine, direct: DirectIo, directory: &Path) -> Box<dyn Backend> {
    open_backend(&BackendConfig { engine, directory: Some(directory.to_owned()), direct }, LEN).unwrap()
}

#[test]
fn ram() {
    check_contract(&RamBackend::new(LEN).unwrap());
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
        let config = BackendConfig {
            engine: Engine::IoUring,
            directory: Some(directory.path().to_owned()),
            direct: DirectIo::Auto,
        };
        assert_eq!(open_backend(&config, LEN).map(drop).unwrap_err().kind(), ErrorKind::Unsupported, "{reason}");
        return;
    }
    for direct in [DirectIo::Auto, DirectIo::Off] {
        let backend = open(Engine::IoUring, direct, directory.path());
        check_contract(backend.as_ref());
        assert_eq!(backend.info().engine, "io_uring");
    }
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
    let config =
        BackendConfig { engine: Engine::File, directory: Some("/nonexistent/place".into()), direct: DirectIo::Auto };
    let error = open_backend(&config, LEN).map(drop).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/place"), "{error}");
}

#[test]
fn tmpfs_takes_or_refuses_direct_io_and_says_which() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return;
    }
    let required = open_backend(
        &BackendConfig { engine: Engine::File, directory: Some(shm.to_owned()), direct: DirectIo::Require },
        LEN,
    );
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
