//! One emulated device by itself, and synthetic loads on a device model.

use std::sync::Arc;

use pyo3::prelude::*;
use serde_json::Value;
use tiermem_core::clock::Clock;
use tiermem_core::device::{DeviceConfig, DeviceSpec, EmulatedDevice, KeepGoing, Workload, run_virtual, run_wall};
use tiermem_core::{Error, ErrorKind, Result};

use crate::buffer::Bytes;
use crate::error::to_python;
use crate::{parse_json, stats};

/// A device: bytes in a backend, time from the model.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct Device {
    inner: EmulatedDevice,
    clock: Arc<Clock>,
}

fn offsets_of(offsets: &Bytes) -> PyResult<Vec<u64>> {
    let unsigned = offsets.values::<i64>()?.iter().map(|&offset| {
        u64::try_from(offset)
            .map_err(|_| to_python(Error::new(ErrorKind::Input, format!("offset {offset} is negative"))))
    });
    unsigned.collect()
}

#[pymethods]
impl Device {
    #[new]
    #[pyo3(signature = (spec_json, *, config_json, wall))]
    fn new(py: Python<'_>, spec_json: &str, config_json: &str, wall: bool) -> PyResult<Self> {
        let spec = DeviceSpec::from_json(spec_json).map_err(to_python)?;
        let config: DeviceConfig = parse_json("device", config_json)?;
        let clock = Arc::new(if wall { Clock::new_wall() } else { Clock::new_virtual() });
        let for_device = Arc::clone(&clock);
        let inner = py.detach(|| EmulatedDevice::open(spec, &config, for_device)).map_err(to_python)?;
        Ok(Self { inner, clock })
    }

    #[getter]
    fn capacity_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    #[getter]
    fn queue_depth(&self) -> usize {
        self.inner.queue_depth()
    }

    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn read_batch(&self, py: Python<'_>, offsets: Bytes, nbytes: usize, mut out: Bytes) -> PyResult<u64> {
        let (offsets, out) = (offsets_of(&offsets)?, out.values_mut::<u8>()?);
        py.detach(|| self.inner.read_batch(&offsets, nbytes, out)).map_err(to_python)
    }

    fn write_batch(&self, py: Python<'_>, offsets: Bytes, nbytes: usize, data: Bytes) -> PyResult<u64> {
        let (offsets, data) = (offsets_of(&offsets)?, data.values::<u8>()?);
        py.detach(|| self.inner.write_batch(&offsets, nbytes, data)).map_err(to_python)
    }

    fn stats_json(&self, py: Python<'_>) -> String {
        let (device, lateness, debt) = py.detach(|| (self.inner.stats(), self.inner.lateness(), self.inner.debt()));
        let mut document = stats::device(&device);
        document["lateness"] = stats::lateness(&lateness);
        document["debt"] = stats::debt(&debt);
        document.to_string()
    }

    fn read_latency_cdf(&self, py: Python<'_>) -> Vec<(u64, f64)> {
        stats::cdf(&py.detach(|| self.inner.stats()).read_latency)
    }
}

pub(crate) fn check_signals(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}

/// Runs a load on the model of a device; Ctrl-C ends it.
#[pyfunction]
#[pyo3(signature = (spec_json, workload_json, *, wall))]
pub(crate) fn run_workload(py: Python<'_>, spec_json: &str, workload_json: &str, wall: bool) -> PyResult<String> {
    let spec = DeviceSpec::from_json(spec_json).map_err(to_python)?;
    let workload: Workload = parse_json("workload", workload_json)?;
    let run = if wall { run_wall } else { run_virtual };
    let point = until_interrupted(py, |keep_going| run(&spec, &workload, keep_going))?;
    Ok(Value::to_string(&stats::point(&point)))
}

/// Runs without the interpreter's lock something that asks now and then whether to go on; Ctrl-C ends it.
pub(crate) fn until_interrupted<T: Send>(
    py: Python<'_>,
    run: impl FnOnce(KeepGoing<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut interrupt = None;
    let outcome = py.detach(|| {
        let mut keep_going = || match Python::attach(check_signals) {
            Ok(()) => Ok(()),
            Err(signal) => {
                interrupt = Some(signal);
                Err(Error::new(ErrorKind::Closed, "interrupted"))
            }
        };
        run(&mut keep_going)
    });
    match (interrupt, outcome) {
        (Some(signal), _) => Err(signal),
        (None, outcome) => outcome.map_err(to_python),
    }
}
