//! The backends under an engine: one, or two with a copy of all rows each.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::engine::{DeviceTime, EngineConfig};
use crate::backend::{Backend, BackendConfig, open_backend};
use crate::error::{Error, ErrorKind, Result};

/// The least that is opened: a page, which any file can be read and written in past the page cache.
pub(super) const PROBE_BYTES: u64 = 4096;

fn refuse(why: &str) -> Error {
    Error::new(ErrorKind::Config, why)
}

fn device_of(directory: &Path) -> Result<u64> {
    let found = std::fs::metadata(directory).map(|metadata| metadata.dev());
    found.map_err(|error| Error::io("opening a directory", error).with_context("path", directory.display()))
}

/// Where each copy is.
///
/// # Errors
///
/// `Config` if two copies of a real device are on one.
pub(super) fn places(config: &EngineConfig) -> Result<Vec<BackendConfig>> {
    let first = &config.backend;
    let directory = config.replica_directory.as_ref().or(first.directory.as_ref());
    let second = BackendConfig { directory: directory.cloned(), ..first.clone() };
    if config.serve.device.replicas < 2 {
        return Ok(vec![first.clone()]);
    }
    if config.time == DeviceTime::Real {
        let is_apart = match (&first.directory, &second.directory) {
            (Some(first), Some(second)) => device_of(first)? != device_of(second)?,
            _ => false,
        };
        if !is_apart {
            return Err(refuse(
                "two copies of all rows are of use on two devices only; set device.replica_directory to a directory on \
                 another one, or replicas = 1",
            ));
        }
    }
    Ok(vec![first.clone(), second])
}

/// The least that can be read or written of all copies.
pub(super) fn alignment_bytes(places: &[BackendConfig]) -> Result<u64> {
    let of = |place: &BackendConfig| Ok(open_backend(place, PROBE_BYTES)?.alignment_bytes() as u64);
    Ok(places.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(1))
}

/// Opens all copies.
///
/// # Errors
///
/// `Config` if reads of a real device are to be hedged and it is read by `pread`; those of the backends.
pub(super) fn open(config: &EngineConfig, places: &[BackendConfig], nbytes: u64) -> Result<Vec<Box<dyn Backend>>> {
    let mut backends = Vec::new();
    for (place, number) in places.iter().zip(0..) {
        let backend = open_backend(place, nbytes)?;
        let info = backend.info();
        let is_hedged = config.serve.device.hedge_after_ns.is_some();
        if config.time == DeviceTime::Real && is_hedged && info.engine != "io_uring" {
            return Err(refuse("a thread that reads by pread cannot ask a second device meanwhile; use io_uring, or leave hedge_after out")
                .with_context("engine", info.engine)
                .with_context("reason", info.fallback_reason));
        }
        backends.push(config.faults.over(number, backend));
    }
    Ok(backends)
}
