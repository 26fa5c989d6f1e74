//! Injected faults: each does what its model says, repeats from its seed, and is off by default.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use tiermem_core::ErrorKind;
use tiermem_core::backend::BackendConfig;
use tiermem_core::clock::Clock;
use tiermem_core::device::{DeviceConfig, DeviceSpec, EmulatedDevice, FaultSpec};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;

fn spec() -> DeviceSpec {
    let path = format!("{}/../emulator_configs/devices/nand-p3700.toml", env!("CARGO_MANIFEST_DIR"));
    let mut spec = DeviceSpec::from_toml(&std::fs::read_to_string(path).unwrap()).unwrap();
    // Without its own tail, so that what is slow is a storm.
    spec.read.latency_quantiles_ns.clear();
    spec.read.latency_max_ns = 0;
    spec
}

fn open(faults: FaultSpec) -> EmulatedDevice {
    let config = DeviceConfig {
        backend: BackendConfig::ram(),
        capacity_bytes: BLOCKS * BLOCK as u64,
        queue_depth: None,
        seed: 1,
        faults,
    };
    EmulatedDevice::open(spec(), &config, Arc::new(Clock::new_virtual())).unwrap()
}

fn offset(block: u64) -> u64 {
    block * BLOCK as u64
}

/// What block `n` is filled with; never zero.
fn mark(n: u64) -> u8 {
    (n % 251) as u8 + 1
}

/// Writes every block; gives which writes succeeded.
fn fill(device: &EmulatedDevice) -> Vec<bool> {
    (0..BLOCKS).map(|n| device.write_batch(&[offset(n)], BLOCK, &[mark(n); BLOCK]).is_ok()).collect()
}

/// The blocks as they are read; `None` where the read fails.
fn read(device: &EmulatedDevice) -> Vec<Option<Vec<u8>>> {
    (0..BLOCKS)
        .map(|n| {
            let mut out = vec![0; BLOCK];
            device.read_batch(&[offset(n)], BLOCK, &mut out).ok().map(|_| out)
        })
        .collect()
}

fn bits_that_differ(found: &[u8], expected: u8) -> u32 {
    found.iter().map(|byte| (byte ^ expected).count_ones()).sum()
}

#[test]
fn nothing_fails_unless_asked_for() {
    let device = open(FaultSpec::default());
    assert!(fill(&device).into_iter().all(|ok| ok));
    for (n, block) in read(&device).into_iter().enumerate() {
        assert_eq!(bits_that_differ(&block.unwrap(), mark(n as u64)), 0);
    }
}

#[test]
fn latent_errors_stay_where_they_are_until_written_over() {
    let faults = FaultSpec { seed: 5, latent_error_share: 0.1, ..FaultSpec::default() };
    let device = open(faults.clone());
    let bad = |device: &EmulatedDevice| -> Vec<usize> {
        read(device).iter().enumerate().filter(|(_, block)| block.is_none()).map(|(n, _)| n).collect()
    };
    let first = bad(&device);
    // 10 % of 256: between 3.5 standard deviations.
    assert!((9..=43).contains(&first.len()), "{first:?}");
    assert_eq!(bad(&device), first, "a latent error stays");
    assert_eq!(bad(&open(faults)), first, "and repeats from its seed");
    assert_ne!(bad(&open(FaultSpec { seed: 6, latent_error_share: 0.1, ..FaultSpec::default() })), first);
    let block = first[0] as u64;
    let error = device.read_batch(&[offset(block)], 8, &mut [0; 8]).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Io, Some(libc::EIO)));
    assert!(error.to_string().contains("latent read error"), "{error}");
    // Part of a block does not cure it, the whole does.
    device.write_batch(&[offset(block)], 512, &[1; 512]).unwrap();
    assert!(device.read_batch(&[offset(block)], 8, &mut [0; 8]).is_err());
    device.write_batch(&[offset(block)], BLOCK, &[1; BLOCK]).unwrap();
    device.read_batch(&[offset(block)], 8, &mut [0; 8]).unwrap();
}

#[test]
fn a_bit_flips_at_rest_and_the_callers_memory_is_left_alone() {
    let faults = FaultSpec { seed: 3, bit_flip_probability: 1.0, ..FaultSpec::default() };
    let device = open(faults.clone());
    let data = [7u8; BLOCK];
    device.write_batch(&[0], BLOCK, &data).unwrap();
    assert_eq!(data, [7u8; BLOCK]);
    let mut out = [0; BLOCK];
    device.read_batch(&[0], BLOCK, &mut out).unwrap();
    assert_eq!(bits_that_differ(&out, 7), 1);
    let mut again = [0; BLOCK];
    device.read_batch(&[0], BLOCK, &mut again).unwrap();
    assert_eq!(out, again, "the flip is stored");
    let other = open(faults);
    other.write_batch(&[0], BLOCK, &data).unwrap();
    other.read_batch(&[0], BLOCK, &mut again).unwrap();
    assert_eq!(out, again, "and repeats from its seed");
}

#[test]
fn torn_writes_keep_whole_sectors_and_dropped_writes_keep_nothing() {
    let torn = open(FaultSpec { seed: 9, torn_write_probability: 1.0, ..FaultSpec::default() });
    assert!(fill(&torn).into_iter().all(|ok| ok), "a torn write is acknowledged");
    for (n, block) in read(&torn).into_iter().enumerate() {
        let block = block.unwrap();
        let kept = block.iter().take_while(|&&byte| byte == mark(n as u64)).count();
        assert!((512..BLOCK).contains(&kept) && kept.is_multiple_of(512), "{kept}");
        assert!(block[kept..].iter().all(|&byte| byte == 0));
    }
    let dropped = open(FaultSpec { seed: 9, dropped_write_probability: 0.5, ..FaultSpec::default() });
    assert!(fill(&dropped).into_iter().all(|ok| ok), "a dropped write is acknowledged");
    let kept = read(&dropped).into_iter().filter(|block| block.as_ref().unwrap()[0] != 0).count();
    assert!((96..=160).contains(&kept), "{kept} of 256 are half");
}

#[test]
fn storms_slow_reads_down_for_a_while() {
    let faults = FaultSpec {
        storm_every_ns: 20_000_000,
        storm_duration_ns: 5_000_000,
        storm_extra_ns: 1_000_000,
        ..FaultSpec::default()
    };
    let latencies = |faults: &FaultSpec| -> Vec<u64> {
        let device = open(faults.clone());
        (0..2000).map(|n| device.read_batch(&[offset(n % BLOCKS)], BLOCK, &mut [0; BLOCK]).unwrap()).collect()
    };
    let stormy = latencies(&faults);
    let slow: u64 = stormy.iter().filter(|&&ns| ns > 900_000).sum();
    let total: u64 = stormy.iter().sum();
    // A quarter of the time is storm; reads that begin in one reach a little out of it.
    let share = slow as f64 / total as f64;
    assert!((0.2..0.35).contains(&share), "{share}");
    assert_eq!(latencies(&faults), stormy);
    assert!(latencies(&FaultSpec::default()).iter().all(|&ns| ns < 900_000));
}

#[test]
fn a_device_goes_away_and_stays_away() {
    let device = open(FaultSpec { gone_after_requests: Some(10), ..FaultSpec::default() });
    let served = fill(&device).into_iter().filter(|&ok| ok).count();
    assert_eq!(served, 10);
    let error = device.read_batch(&[0], BLOCK, &mut [0; BLOCK]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    assert!(error.to_string().contains("gone away"), "{error}");
}

#[test]
fn a_worn_out_device_is_read_only() {
    let device = open(FaultSpec { read_only_after_bytes: Some(offset(3)), ..FaultSpec::default() });
    let served = fill(&device).into_iter().filter(|&ok| ok).count();
    assert_eq!(served, 3);
    let error = device.write_batch(&[0], BLOCK, &[0; BLOCK]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let blocks = read(&device);
    assert_eq!(blocks[2].as_ref().unwrap()[0], 3, "what was written can be read");
}

#[test]
fn what_comes_before_a_failing_request_of_a_batch_is_stored() {
    for faults in [
        FaultSpec { read_only_after_bytes: Some(offset(2)), latent_error_share: 1.0, ..FaultSpec::default() },
        FaultSpec { gone_after_requests: Some(2), ..FaultSpec::default() },
    ] {
        let gone = faults.gone_after_requests.is_some();
        let device = open(faults);
        let offsets: Vec<u64> = (0..3).map(offset).collect();
        let error = device.write_batch(&offsets, BLOCK, &[7; 3 * BLOCK]).unwrap_err();
        assert!(error.to_string().contains(&format!("offset={}", offset(2))), "{error}");
        let mut out = [0; BLOCK];
        if gone {
            assert!(device.read_batch(&[0], BLOCK, &mut out).is_err());
        } else {
            device.read_batch(&[offset(1)], BLOCK, &mut out).unwrap();
            assert_eq!(bits_that_differ(&out, 7), 0);
        }
    }
}

#[test]
fn wrong_faults_are_refused_with_the_key_named() {
    let refusal = |faults: FaultSpec| faults.validate().unwrap_err().to_string();
    let text = refusal(FaultSpec { latent_error_share: 1.5, ..FaultSpec::default() });
    assert!(text.contains("faults.latent_error_share"), "{text}");
    let text = refusal(FaultSpec { torn_write_probability: f64::NAN, ..FaultSpec::default() });
    assert!(text.contains("faults.torn_write_probability"), "{text}");
    let text = refusal(FaultSpec { storm_every_ns: 5, storm_duration_ns: 6, ..FaultSpec::default() });
    assert!(text.contains("faults.storm_duration_ns"), "{text}");
}
