//! One emulated device by itself.

use std::sync::Arc;

use pyo3::prelude::*;
use tiermem_core::backend::BackendConfig;
use tiermem_core::clock::Clock;
use tiermem_core::device::{DeviceSpec, EmulatedDevice};
use tiermem_core::{Error, ErrorKind};

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
    #[pyo3(signature = (spec_json, *, backend_json, capacity_bytes, wall, queue_depth, seed))]
    fn new(
        py: Python<'_>,
        spec_json: &str,
        backend_json: &str,
        capacity_bytes: u64,
        wall: bool,
        queue_depth: Option<u32>,
        seed: u64,
    ) -> PyResult<Self> {
        let spec = DeviceSpec::from_json(spec_json).map_err(to_python)?;
        let backend: BackendConfig = parse_json("backend", backend_json)?;
        let clock = Arc::new(if wall { Clock::new_wall() } else { Clock::new_virtual() });
        let for_device = Arc::clone(&clock);
        let inner = py
            .detach(|| EmulatedDevice::open(spec, &backend, capacity_bytes, for_device, queue_depth, seed))
            .map_err(to_python)?;
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

    fn stats_json(&self) -> String {
        let lateness = stats::lateness(&self.inner.lateness());
        let mut document = stats::device(&self.inner.stats());
        document["lateness"] = lateness;
        document.to_string()
    }

    fn read_latency_cdf(&self) -> Vec<(u64, f64)> {
        stats::cdf(&self.inner.stats().read_latency)
    }
}
