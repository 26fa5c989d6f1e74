//! An emulated device on a unix socket.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use serde_json::json;
use tiermem_core::clock::Clock;
use tiermem_core::device::{DeviceSpec, LiveConfig, LiveDevice};
use tiermem_core::nbd;

use crate::device::until_interrupted;
use crate::error::to_python;
use crate::{parse_json, stats};

/// A server that listens; `run` serves.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct NbdServer {
    server: Mutex<nbd::NbdServer>,
    stop: AtomicBool,
}

#[pymethods]
impl NbdServer {
    #[new]
    #[pyo3(signature = (spec_json, *, config_json, socket))]
    fn new(py: Python<'_>, spec_json: &str, config_json: &str, socket: PathBuf) -> PyResult<Self> {
        let spec = DeviceSpec::from_json(spec_json).map_err(to_python)?;
        let config: LiveConfig = parse_json("device", config_json)?;
        let server = py.detach(|| {
            let clock = Arc::new(Clock::new_wall());
            let device = LiveDevice::open(spec, &config, Arc::clone(&clock))?;
            nbd::NbdServer::bind(device, clock, &socket)
        });
        Ok(Self { server: Mutex::new(server.map_err(to_python)?), stop: AtomicBool::new(false) })
    }

    fn run(&self, py: Python<'_>) -> PyResult<()> {
        until_interrupted(py, |keep_going| {
            self.server.lock().unwrap_or_else(PoisonError::into_inner).run(&self.stop, keep_going)
        })
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    fn stats_json(&self, py: Python<'_>) -> String {
        py.detach(|| {
            let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
            let found = server.stats();
            json!({
                "connections": found.connections,
                "refused": found.refused,
                "last_refusal": found.last_refusal,
                "device": stats::device(&server.device().stats()),
                "lateness": stats::lateness(server.device().lateness()),
            })
            .to_string()
        })
    }
}
