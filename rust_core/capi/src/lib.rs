//! The C ABI of an emulated device: open, submit, poll, close. `include/tiermem.h` is the contract. A
//! device belongs to one thread. No panic crosses the border: it becomes `-EIO`.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tiermem_core::backend::BackendConfig;
use tiermem_core::clock::Clock;
use tiermem_core::device::{DeviceSpec, LiveConfig, LiveDevice};
use tiermem_core::{Error, ErrorKind, Result};

const ABI_VERSION: u32 = 1;

/// See `tiermem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn tiermem_abi_version() -> u32 {
    ABI_VERSION
}

fn open(path: &CStr, capacity_bytes: u64, seed: u64, zero_latency: bool, transport_ns: u64) -> Result<LiveDevice> {
    let path = Path::new(path.to_str().map_err(|_| Error::new(ErrorKind::Config, "the path is not UTF-8"))?);
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io("reading a device file", error).with_context("path", path.display()))?;
    let spec = DeviceSpec::from_toml(&text).map_err(|error| error.with_context("path", path.display()))?;
    let config = LiveConfig { backend: BackendConfig::ram(), capacity_bytes, seed, zero_latency, transport_ns };
    let mut device = LiveDevice::open(spec, &config, Arc::new(Clock::new_wall()))?;
    device.touch()?;
    Ok(device)
}

/// See `tiermem.h`.
///
/// # Safety
///
/// `path` is a string that ends with a zero byte, `message` has room for `message_bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tiermem_device_open(
    path: *const c_char,
    capacity_bytes: u64,
    seed: u64,
    zero_latency: i32,
    transport_ns: u64,
    message: *mut c_char,
    message_bytes: usize,
) -> *mut LiveDevice {
    // SAFETY: by the contract of this function.
    let path = unsafe { CStr::from_ptr(path) };
    let opened = catch_unwind(|| open(path, capacity_bytes, seed, zero_latency != 0, transport_ns));
    let text = match opened {
        Ok(Ok(device)) => return Box::into_raw(Box::new(device)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "opening a device panicked; please report this as a bug".into(),
    };
    if message_bytes > 0 {
        let length = text.len().min(message_bytes - 1);
        // SAFETY: by the contract of this function; the text and the message do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), message.cast::<u8>(), length) };
        // SAFETY: `length` is below `message_bytes`.
        let end = unsafe { message.add(length) };
        // SAFETY: as above.
        unsafe { end.write(0) };
    }
    std::ptr::null_mut()
}

fn code(outcome: std::thread::Result<Result<()>>) -> i32 {
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => match (error.kind(), error.raw_os_error()) {
            (_, Some(errno)) => -errno,
            (ErrorKind::Input, None) => -libc::EINVAL,
            (ErrorKind::Capacity, None) => -libc::ENOMEM,
            _ => -libc::EIO,
        },
        Err(_) => -libc::EIO,
    }
}

/// See `tiermem.h`.
///
/// # Safety
///
/// `device` comes from `tiermem_device_open`, no other thread uses it, and `memory` has `nbytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tiermem_device_read(
    device: *mut LiveDevice,
    tag: u32,
    offset: u64,
    memory: *mut u8,
    nbytes: usize,
) -> i32 {
    // SAFETY: by the contract of this function.
    let device = unsafe { &mut *device };
    if memory.is_null() {
        return -libc::EINVAL;
    }
    // SAFETY: by the contract of this function.
    let out = unsafe { std::slice::from_raw_parts_mut(memory, nbytes) };
    code(catch_unwind(AssertUnwindSafe(|| device.read(tag, offset, out))))
}

/// See `tiermem.h`.
///
/// # Safety
///
/// As for `tiermem_device_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tiermem_device_write(
    device: *mut LiveDevice,
    tag: u32,
    offset: u64,
    memory: *const u8,
    nbytes: usize,
) -> i32 {
    // SAFETY: by the contract of this function.
    let device = unsafe { &mut *device };
    if memory.is_null() {
        return -libc::EINVAL;
    }
    // SAFETY: by the contract of this function.
    let data = unsafe { std::slice::from_raw_parts(memory, nbytes) };
    code(catch_unwind(AssertUnwindSafe(|| device.write(tag, offset, data))))
}

/// See `tiermem.h`.
///
/// # Safety
///
/// As for `tiermem_device_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tiermem_device_discard(device: *mut LiveDevice, offset: u64, nbytes: u64) -> i32 {
    // SAFETY: by the contract of this function.
    let device = unsafe { &mut *device };
    code(catch_unwind(AssertUnwindSafe(|| device.discard(offset, nbytes))))
}

/// See `tiermem.h`.
///
/// # Safety
///
/// `device` as for `tiermem_device_read`; `tags` has room for `tags_max` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tiermem_device_poll(device: *mut LiveDevice, tags: *mut u32, tags_max: usize) -> usize {
    // SAFETY: by the contract of this function.
    let device = unsafe { &mut *device };
    if tags.is_null() {
        return 0;
    }
    // SAFETY: by the contract of this function.
    let tags = unsafe { std::slice::from_raw_parts_mut(tags, tags_max) };
    let polled = catch_unwind(AssertUnwindSafe(|| device.poll_many(tags)));
    polled.unwrap_or(0)
}

/// See `tiermem.h`.
///
/// # Safety
///
/// `device` comes from `tiermem_device_open` and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tiermem_device_close(device: *mut LiveDevice) {
    if !device.is_null() {
        // SAFETY: by the contract of this function.
        drop(unsafe { Box::from_raw(device) });
    }
}
