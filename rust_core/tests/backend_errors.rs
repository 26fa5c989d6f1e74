//! What a backend makes of a host that refuses: real refusals, by real files and a real kernel.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::OpenOptions;
use std::path::Path;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use tiermem_core::backend::{
    AlignedBuffer, Backend, BackendConfig, CompletionMode, DataFile, DirectIo, Engine, Extent, FileBackend, IoBatch,
    Operation, UringBackend, open_backend, open_file, probe_io_uring,
};
use tiermem_core::{Error, ErrorKind};

const LEN: u64 = 1 << 20;

fn block(offset: u64) -> IoBatch {
    IoBatch { buffer: AlignedBuffer::zeroed(4096), extents: vec![Extent { offset, buffer_offset: 0, nbytes: 4096 }] }
}

/// The same file under both engines; one of them where there is no `io_uring`.
fn engines(path: &Path) -> Vec<Box<dyn Backend>> {
    let open = || {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        DataFile::from_file(file, path, LEN)
    };
    let mut engines: Vec<Box<dyn Backend>> = vec![Box::new(FileBackend::new(open()))];
    if let Ok(ring) = UringBackend::new(open(), 8, CompletionMode::Interrupt) {
        engines.push(Box::new(ring));
    }
    engines
}

fn check_named(error: &Error, path: &Path, offset: u64) {
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains(&format!("offset={offset}")), "{text}");
}

#[test]
fn a_full_disk_is_no_space() {
    // A file that is full by nature: every write ends with ENOSPC.
    let full = Path::new("/dev/full");
    for backend in engines(full) {
        let error = backend.write(block(8192)).1.unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NoSpace, Some(libc::ENOSPC)));
        check_named(&error, full, 8192);
    }
}

#[test]
fn an_unreadable_place_is_eio() {
    // This process has nothing at its first address, and the kernel says EIO of it.
    let memory = Path::new("/proc/self/mem");
    for backend in engines(memory) {
        let error = backend.read(block(4096)).1.unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Io, Some(libc::EIO)), "{error}");
        check_named(&error, memory, 4096);
    }
}

#[test]
fn a_file_that_was_truncated_underneath_is_corruption_and_the_rest_stays_readable() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    for direct in [DirectIo::Off, DirectIo::Auto] {
        for engine in [Engine::File, Engine::Auto] {
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(LEN).unwrap();
            let backend = open_file(&BackendConfig { direct, ..BackendConfig::new(engine) }, &path).unwrap();
            assert_eq!(backend.len_bytes(), LEN);
            file.set_len(6144).unwrap();
            // Whole, half there, and gone: the first of them that is short is named.
            for (offset, is_there) in [(0, true), (4096, false), (65_536, false)] {
                let (batch, result) = backend.read(block(offset));
                assert_eq!(batch.buffer.len(), 4096);
                match result {
                    Ok(()) => assert!(is_there),
                    Err(error) => {
                        assert!(!is_there);
                        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                        check_named(&error, &path, offset);
                    }
                }
            }
        }
    }
}

/// A batch of which many requests fail once hung: completions behind the first failure were not counted.
#[test]
fn a_batch_that_fails_in_many_places_returns_its_error_and_its_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let file = std::fs::File::create(&path).unwrap();
    for backend in engines(&path) {
        file.set_len(8192).unwrap();
        for _ in 0..3 {
            let extent = |n: usize| Extent { offset: n as u64 % 256 * 4096, buffer_offset: n * 4096, nbytes: 4096 };
            let batch = IoBatch { buffer: AlignedBuffer::zeroed(600 * 4096), extents: (0..600).map(extent).collect() };
            let (batch, result) = backend.read(batch);
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Corruption);
            assert_eq!((batch.buffer.len(), batch.extents.len()), (600 * 4096, 600));
        }
        file.set_len(LEN).unwrap();
        backend.read(block(8192)).1.unwrap();
    }
}

#[test]
fn a_file_that_does_not_exist_is_named_and_not_created() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing");
    for direct in [DirectIo::Off, DirectIo::Auto] {
        let config = BackendConfig { direct, ..BackendConfig::new(Engine::File) };
        let error = open_file(&config, &path).map(drop).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
    assert!(!path.exists());
}

/// All handles go at once, the backend among them: what was started is written, and memory that the
/// kernel still fills is not given to anybody else.
#[test]
fn dropping_every_handle_at_once_loses_nothing_and_frees_nothing_early() {
    if probe_io_uring().is_err() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    for round in 1..=4u8 {
        std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let config = BackendConfig { io_depth: 16, ..BackendConfig::new(Engine::IoUring) };
        let backend = open_file(&config, &path).unwrap();
        let batch = |first: u64, fill: u8| {
            let mut buffer = backend.buffer(512 * 4096);
            buffer.fill(fill);
            let extent = |n: u64| Extent { offset: (first + n) * 4096, buffer_offset: n as usize * 4096, nbytes: 4096 };
            IoBatch { buffer, extents: (0..512).map(extent).collect() }
        };
        let writes: Vec<_> = (0..4).map(|n| backend.start(Operation::Write, batch(n * 512, round + n as u8))).collect();
        let reads: Vec<_> = (0..4).map(|n| backend.start(Operation::Read, batch(2048 + n * 512, 0xee))).collect();
        // Whoever waits drives the ring for all, so in every other round nobody does.
        let kept = round.is_multiple_of(2).then(|| backend.start(Operation::Read, batch(3000, 0xee)));
        drop((reads, writes, backend));
        if let Some(kept) = kept {
            // A handle that outlives its backend still has the outcome.
            let (batch, result) = kept.wait();
            result.unwrap();
            assert!(batch.buffer.iter().all(|&byte| byte == 0));
        }
        let bytes = std::fs::read(&path).unwrap();
        for (n, part) in bytes.chunks(512 * 4096).take(4).enumerate() {
            assert!(part.iter().all(|&byte| byte == round + n as u8), "round {round}, batch {n}");
        }
        assert!(bytes[4 * 512 * 4096..].iter().all(|&byte| byte == 0));
    }
}

/// As containers and hardened kernels do it: a system call is refused, for this thread alone.
fn refusing<T: Send + 'static>(
    call: libc::c_long,
    rules: Vec<SeccompRule>,
    errno: i32,
    run: impl FnOnce() -> T + Send + 'static,
) -> T {
    let thread = std::thread::spawn(move || {
        let refusal = SeccompAction::Errno(errno as u32);
        let architecture = std::env::consts::ARCH.try_into().unwrap();
        let calls = [(call, rules)].into_iter().collect();
        let filter = SeccompFilter::new(calls, SeccompAction::Allow, refusal, architecture).unwrap();
        let program: BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        run()
    });
    thread.join().unwrap()
}

#[test]
fn a_host_that_refuses_io_uring_falls_back_with_one_message() {
    for (errno, why) in [(libc::ENOSYS, "this kernel has none"), (libc::EPERM, "this host forbids it")] {
        let directory = tempfile::tempdir().unwrap();
        refusing(libc::SYS_io_uring_setup, Vec::new(), errno, move || {
            let config =
                |engine| BackendConfig { directory: Some(directory.path().to_owned()), ..BackendConfig::new(engine) };
            let backend = open_backend(&config(Engine::Auto), LEN).unwrap();
            let info = backend.info();
            assert_eq!(info.engine, "file");
            assert_eq!(info.fallback_reason.matches("io_uring").count(), 1, "{}", info.fallback_reason);
            assert!(info.fallback_reason.contains(why), "{}", info.fallback_reason);
            backend.write(block(4096)).1.unwrap();
            let refusal = open_backend(&config(Engine::IoUring), LEN).map(drop).unwrap_err();
            assert_eq!(refusal.kind(), ErrorKind::Unsupported);
            assert!(refusal.to_string().contains(why), "{refusal}");
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
        });
    }
}

#[test]
fn a_limit_on_locked_memory_costs_the_registration_and_nothing_else() {
    if probe_io_uring().is_err() {
        return;
    }
    // IORING_REGISTER_BUFFERS, refused as by RLIMIT_MEMLOCK.
    let registers_buffers = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0).unwrap();
    let rule = SeccompRule::new(vec![registers_buffers]).unwrap();
    refusing(libc::SYS_io_uring_register, vec![rule], libc::ENOMEM, || {
        let directory = tempfile::tempdir().unwrap();
        let config =
            BackendConfig { directory: Some(directory.path().to_owned()), ..BackendConfig::new(Engine::IoUring) };
        let backend = open_backend(&config, LEN).unwrap();
        let info = backend.info();
        assert!(!info.registered_buffers && info.fallback_reason.contains("not registered"), "{info:?}");
        let (mut batch, result) = backend.read(block(4096));
        result.unwrap();
        batch.buffer.fill(3);
        backend.write(batch).1.unwrap();
        let read = backend.read(IoBatch { buffer: backend.buffer(4096), extents: block(4096).extents });
        read.1.unwrap();
        assert!(read.0.buffer.iter().all(|&byte| byte == 3));
    });
}
