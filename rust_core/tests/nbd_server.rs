//! The server on real sockets: who may connect, what survives a rude client, and that nothing is left behind.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tiermem_core::backend::BackendConfig;
use tiermem_core::clock::Clock;
use tiermem_core::device::{DeviceSpec, LiveConfig, LiveDevice};
use tiermem_core::nbd::{NbdServer, ServerStats};
use tiermem_core::{Error, ErrorKind, Result};

const LEN: u64 = 64 << 20;

fn server(path: &Path) -> Result<NbdServer> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../emulator_configs/devices/optane-p4800x.toml");
    let spec = DeviceSpec::from_toml(&std::fs::read_to_string(file).unwrap()).unwrap();
    let config = LiveConfig {
        backend: BackendConfig::ram(),
        capacity_bytes: LEN,
        seed: 1,
        zero_latency: false,
        transport_ns: 0,
    };
    let clock = Arc::new(Clock::new_wall());
    NbdServer::bind(LiveDevice::open(spec, &config, Arc::clone(&clock))?, clock, path)
}

/// Runs `client` against a server; gives what the server counted.
fn served(client: impl FnOnce(&Path)) -> ServerStats {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.sock");
    let mut server = server(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let stop = Arc::new(AtomicBool::new(false));
    let for_server = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        server.run(&for_server, &mut || Ok(())).unwrap();
        server.stats().clone()
    });
    client(&path);
    stop.store(true, Ordering::Release);
    let stats = thread.join().unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
    stats
}

fn connect(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0").unwrap();
    let mut answers = [0; 18 + 20 + 12 + 20 + 14 + 20];
    stream.read_exact(&mut answers).unwrap();
    stream
}

fn send(stream: &mut UnixStream, kind: u16, cookie: u64, offset: u64, nbytes: u32) {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(nbytes.to_be_bytes());
    stream.write_all(&bytes).unwrap();
}

/// Error and cookie of the next reply.
fn reply(stream: &mut UnixStream) -> (u32, u64) {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes());
    (u32::from_be_bytes(head[4..8].try_into().unwrap()), u64::from_be_bytes(head[8..].try_into().unwrap()))
}

#[test]
fn what_one_connection_writes_another_reads() {
    let stats = served(|path| {
        let (mut one, mut other) = (connect(path), connect(path));
        send(&mut one, 1, 11, 5000, 3000);
        one.write_all(&[9; 3000]).unwrap();
        assert_eq!(reply(&mut one), (0, 11));
        send(&mut one, 3, 12, 0, 0);
        assert_eq!(reply(&mut one), (0, 12));
        send(&mut other, 0, 13, 4999, 3002);
        assert_eq!(reply(&mut other), (0, 13));
        let mut data = [1; 3002];
        other.read_exact(&mut data).unwrap();
        assert_eq!((data[0], data[1], data[3000], data[3001]), (0, 9, 9, 0));
        send(&mut other, 4, 14, 0, LEN as u32 / 4);
        assert_eq!(reply(&mut other), (0, 14));
        send(&mut other, 0, 15, 5000, 4);
        assert_eq!(reply(&mut other), (0, 15));
        other.read_exact(&mut data[..4]).unwrap();
        assert_eq!(data[..4], [0; 4], "a trimmed range reads as zeros");
        // A goodbye is answered by the end of the stream.
        send(&mut other, 2, 16, 0, 0);
        assert_eq!(other.read(&mut data).unwrap(), 0);
    });
    assert_eq!((stats.connections, stats.refused), (2, 0));
}

#[test]
fn a_rude_client_harms_nobody_else() {
    let stats = served(|path| {
        let mut good = connect(path);
        let mut noise = UnixStream::connect(path).unwrap();
        noise.write_all(&[0xa5; 4096]).unwrap();
        let mut rest = Vec::new();
        // A reset is as good an end as a close: what was sent was not all read.
        let _ = noise.read_to_end(&mut rest);
        assert!(rest.len() <= 18);
        // One that leaves in the middle of a write, and one with requests in flight.
        let mut quitter = connect(path);
        send(&mut quitter, 1, 1, 0, 1 << 20);
        quitter.write_all(&[1; 1000]).unwrap();
        drop(quitter);
        let mut impatient = connect(path);
        for cookie in 0..100 {
            send(&mut impatient, 0, cookie, 0, 65_536);
        }
        drop(impatient);
        for cookie in 0..200 {
            send(&mut good, 0, cookie, 4096 * cookie, 4096);
            assert_eq!(reply(&mut good), (0, cookie));
            good.read_exact(&mut [0; 4096]).unwrap();
        }
        send(&mut good, 0, 1, LEN, 1);
        assert_eq!(reply(&mut good), (22, 1));
    });
    assert_eq!((stats.connections, stats.refused), (4, 1));
    assert!(stats.last_refusal.contains("flags"), "{}", stats.last_refusal);
}

#[test]
fn a_client_that_asks_for_everything_and_reads_nothing_gets_it_all_in_the_end() {
    served(|path| {
        // Four times as much as the server holds for one client.
        let count = 256;
        let mut greedy = connect(path);
        for cookie in 0..count {
            send(&mut greedy, 0, cookie, 0, 1 << 20);
        }
        let mut polite = connect(path);
        send(&mut polite, 0, 7, 0, 512);
        assert_eq!(reply(&mut polite), (0, 7));
        let (mut seen, mut data) = (vec![false; count as usize], vec![0; 1 << 20]);
        for _ in 0..count {
            let (error, cookie) = reply(&mut greedy);
            greedy.read_exact(&mut data).unwrap();
            assert!(error == 0 && !std::mem::replace(&mut seen[cookie as usize], true));
        }
    });
}

#[test]
fn a_sixty_fifth_connection_is_closed_and_counted() {
    let stats = served(|path| {
        let held: Vec<UnixStream> = (0..64).map(|_| connect(path)).collect();
        let mut more = UnixStream::connect(path).unwrap();
        assert_eq!(more.read(&mut [0; 18]).unwrap(), 0);
        drop(held);
    });
    assert_eq!((stats.refused, stats.last_refusal), (1, "too many connections at once"));
}

#[test]
fn a_path_that_is_taken_is_refused_and_a_dead_socket_replaced() {
    let refusal = |path: &Path| -> Error { server(path).map(drop).unwrap_err() };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.sock");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(refusal(&path).kind(), ErrorKind::Config);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();

    let first = server(&path).unwrap();
    let error = refusal(&path);
    assert!(error.to_string().contains("another server"), "{error}");
    drop(first);
    assert!(!path.exists());

    // As after kill -9.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(server(&path).unwrap());

    let error = refusal(&directory.path().join("x".repeat(120)));
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("too long"), "{error}");
    assert_eq!(refusal(Path::new("/nonexistent/device.sock")).kind(), ErrorKind::Io);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
