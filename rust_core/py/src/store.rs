//! A tiered store and the tickets of its batches.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tiermem_core::backend::Backend;
use tiermem_core::embedding::Pooling;
use tiermem_core::store::{Gathered, Gradient, Lookup, Pooled, Store as CoreStore, StoreConfig, TicketId};
use tiermem_core::testkit::GatedBackend;

use crate::buffer::Bytes;
use crate::device::check_signals;
use crate::error::to_python;
use crate::gate::Gate;
use crate::stats;

/// Tables on a hierarchy.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct Store {
    inner: Arc<CoreStore>,
}

/// The handle of one prefetched batch.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct Ticket {
    store: Arc<CoreStore>,
    id: TicketId,
    released: AtomicBool,
}

fn views(lookups: &[(usize, Bytes, Bytes)]) -> PyResult<Vec<Lookup<'_>>> {
    lookups
        .iter()
        .map(|(table, ids, offsets)| Ok(Lookup { table: *table, ids: ids.values()?, offsets: offsets.values()? }))
        .collect()
}

fn pooling(mode: &str) -> PyResult<Pooling> {
    match mode {
        "sum" => Ok(Pooling::Sum),
        "mean" => Ok(Pooling::Mean),
        "none" => Ok(Pooling::None),
        other => Err(PyValueError::new_err(format!("mode \"{other}\" is not one of sum, mean, none"))),
    }
}

fn pooled(pooling: Pooling, sample_weights: Option<&Bytes>) -> PyResult<Pooled<'_>> {
    Ok(Pooled { pooling, sample_weights: sample_weights.map(Bytes::values::<f32>).transpose()? })
}

/// Number of a lookup, its gradient or output, its sample weights.
type Side = (usize, Bytes, Option<Bytes>);

fn gathered(sides: &mut [Side], pooling: Pooling) -> PyResult<Vec<Gathered<'_>>> {
    sides
        .iter_mut()
        .map(|(lookup, out, weights)| {
            let pooled = pooled(pooling, weights.as_ref())?;
            Ok(Gathered { lookup: *lookup, pooled, out: out.values_mut::<f32>()? })
        })
        .collect()
}

fn gradients(sides: &[Side], pooling: Pooling) -> PyResult<Vec<Gradient<'_>>> {
    sides
        .iter()
        .map(|(lookup, values, weights)| {
            let pooled = pooled(pooling, weights.as_ref())?;
            Ok(Gradient { lookup: *lookup, pooled, values: values.values::<f32>()? })
        })
        .collect()
}

/// Runs something that may be interrupted by a signal.
fn interruptible<T: Send>(
    py: Python<'_>,
    run: impl FnOnce(&dyn Fn() -> bool) -> tiermem_core::error::Result<T> + Send,
) -> PyResult<T> {
    let signal = Mutex::new(None);
    let is_interrupted = || match Python::attach(check_signals) {
        Ok(()) => false,
        Err(error) => {
            *signal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            true
        }
    };
    let done = py.detach(|| run(&is_interrupted));
    match signal.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => done.map_err(to_python),
    }
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (config_json, *, gate = None))]
    fn new(py: Python<'_>, config_json: &str, gate: Option<&Gate>) -> PyResult<Self> {
        let config = StoreConfig::from_json(config_json).map_err(to_python)?;
        let gate = gate.map(|gate| Arc::clone(&gate.inner));
        let wrap = |_: usize, backend: Box<dyn Backend>| -> Box<dyn Backend> {
            match &gate {
                Some(gate) => Box::new(GatedBackend::new(backend, Arc::clone(gate))),
                None => backend,
            }
        };
        let inner = py.detach(|| CoreStore::open_wrapped(config, &wrap)).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    fn prefetch(&self, py: Python<'_>, lookups: Vec<(usize, Bytes, Bytes)>) -> PyResult<Ticket> {
        let lookups = views(&lookups)?;
        let id = py.detach(|| self.inner.prefetch(&lookups)).map_err(to_python)?;
        Ok(Ticket { store: Arc::clone(&self.inner), id, released: AtomicBool::new(false) })
    }

    fn announce(&self, py: Python<'_>, lookups: Vec<(usize, Bytes, Bytes)>) -> PyResult<()> {
        let lookups = views(&lookups)?;
        py.detach(|| self.inner.announce(&lookups)).map_err(to_python)
    }

    fn withdraw_announced(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.withdraw_announced()).map_err(to_python)
    }

    #[pyo3(signature = (lookups, outs, *, mode))]
    fn pool(
        &self,
        py: Python<'_>,
        lookups: Vec<(usize, Bytes, Bytes)>,
        mut outs: Vec<Side>,
        mode: &str,
    ) -> PyResult<()> {
        let (lookups, outs) = (views(&lookups)?, gathered(&mut outs, pooling(mode)?)?);
        interruptible(py, |is_interrupted| self.inner.pool(&lookups, outs, is_interrupted))
    }

    fn step(&self, py: Python<'_>, lr: f32) -> PyResult<()> {
        py.detach(|| self.inner.step(lr)).map_err(to_python)
    }

    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.discard()).map_err(to_python)
    }

    fn gradient_norm(&self, py: Python<'_>) -> PyResult<f64> {
        py.detach(|| self.inner.gradient_norm()).map_err(to_python)
    }

    fn scale_gradients(&self, py: Python<'_>, factor: f32) -> PyResult<()> {
        py.detach(|| self.inner.scale_gradients(factor)).map_err(to_python)
    }

    #[pyo3(signature = (table, start, weights, state, *, stored = false))]
    fn read_rows(
        &self,
        py: Python<'_>,
        table: usize,
        start: u64,
        mut weights: Bytes,
        mut state: Bytes,
        stored: bool,
    ) -> PyResult<()> {
        let state = state.values_mut::<f32>()?;
        if stored {
            let weights = weights.values_mut::<u8>()?;
            return py.detach(|| self.inner.read_stored_rows(table, start, weights, state)).map_err(to_python);
        }
        let weights = weights.values_mut::<f32>()?;
        py.detach(|| self.inner.read_rows(table, start, weights, state)).map_err(to_python)
    }

    #[pyo3(signature = (table, start, weights, state = None, *, stored = false))]
    fn write_rows(
        &self,
        py: Python<'_>,
        table: usize,
        start: u64,
        weights: Bytes,
        state: Option<Bytes>,
        stored: bool,
    ) -> PyResult<()> {
        let state = state.as_ref().map(Bytes::values::<f32>).transpose()?;
        if stored {
            let weights = weights.values::<u8>()?;
            return py.detach(|| self.inner.write_stored_rows(table, start, weights, state)).map_err(to_python);
        }
        let weights = weights.values::<f32>()?;
        py.detach(|| self.inner.write_rows(table, start, weights, state)).map_err(to_python)
    }

    fn save_rows(&self, py: Python<'_>, path: PathBuf) -> PyResult<u64> {
        py.detach(|| self.inner.save_rows(&path)).map_err(to_python)
    }

    fn load_rows(&self, py: Python<'_>, path: PathBuf) -> PyResult<u64> {
        py.detach(|| self.inner.load_rows(&path)).map_err(to_python)
    }

    fn chunk_rows(&self, py: Python<'_>, table: usize) -> PyResult<usize> {
        py.detach(|| self.inner.chunk_rows(table)).map_err(to_python)
    }

    fn state_floats(&self, table: usize) -> PyResult<usize> {
        self.inner.state_floats(table).map_err(to_python)
    }

    fn is_resident(&self, table: usize) -> PyResult<bool> {
        self.inner.is_resident(table).map_err(to_python)
    }

    fn steps(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.inner.steps()).map_err(to_python)
    }

    fn set_steps(&self, py: Python<'_>, steps: u64) -> PyResult<()> {
        py.detach(|| self.inner.set_steps(steps)).map_err(to_python)
    }

    #[getter]
    fn simd(&self) -> String {
        self.inner.simd_level().to_string()
    }

    #[getter]
    fn is_virtual(&self) -> bool {
        self.inner.is_virtual()
    }

    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }

    fn advance(&self, duration_ns: u64) {
        self.inner.advance(duration_ns);
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.flush()).map_err(to_python)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.close()).map_err(to_python)
    }

    fn stats_json(&self, py: Python<'_>) -> PyResult<String> {
        let stats = py.detach(|| self.inner.stats()).map_err(to_python)?;
        Ok(stats::store(&stats).to_string())
    }

    fn table_stats_json(&self, py: Python<'_>) -> PyResult<String> {
        let tables = py.detach(|| self.inner.table_stats()).map_err(to_python)?;
        Ok(stats::tables(&tables).to_string())
    }

    fn timeline_json(&self, py: Python<'_>) -> PyResult<String> {
        let timeline = py.detach(|| self.inner.timeline()).map_err(to_python)?;
        Ok(stats::timeline(&timeline).to_string())
    }

    fn read_latency_cdf(&self, py: Python<'_>, tier: usize) -> PyResult<Vec<(u64, f64)>> {
        let stats = py.detach(|| self.inner.stats()).map_err(to_python)?;
        Ok(stats.tiers.get(tier).map(|tier| stats::cdf(&tier.device.read_latency)).unwrap_or_default())
    }
}

#[pymethods]
impl Ticket {
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        interruptible(py, |is_interrupted| self.store.wait(self.id, is_interrupted))
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        if self.released.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        py.detach(|| self.store.release(self.id)).map_err(to_python)
    }

    #[pyo3(signature = (outs, *, mode))]
    fn gather(&self, py: Python<'_>, mut outs: Vec<Side>, mode: &str) -> PyResult<()> {
        let outs = gathered(&mut outs, pooling(mode)?)?;
        py.detach(|| self.store.gather_all(self.id, outs)).map_err(to_python)
    }

    #[pyo3(signature = (gradients, *, mode))]
    fn accumulate(&self, py: Python<'_>, gradients: Vec<Side>, mode: &str) -> PyResult<()> {
        let gradients = self::gradients(&gradients, pooling(mode)?)?;
        py.detach(|| self.store.accumulate_all(self.id, &gradients)).map_err(to_python)
    }

    #[pyo3(signature = (gradients, lr, *, mode))]
    fn update(&self, py: Python<'_>, gradients: Vec<Side>, lr: f32, mode: &str) -> PyResult<()> {
        let gradients = self::gradients(&gradients, pooling(mode)?)?;
        py.detach(|| self.store.update_all(self.id, &gradients, lr)).map_err(to_python)
    }

    fn sample_weight_gradient(&self, py: Python<'_>, lookup: usize, gradients: Bytes, mut out: Bytes) -> PyResult<()> {
        let (gradients, out) = (gradients.values::<f32>()?, out.values_mut::<f32>()?);
        py.detach(|| self.store.sample_weight_gradient(self.id, lookup, gradients, out)).map_err(to_python)
    }
}

impl Drop for Ticket {
    /// A batch whose result was thrown away gives its rows back. A store that is closed or broken has nothing to give back to.
    fn drop(&mut self) {
        if !*self.released.get_mut() {
            let (store, id) = (&self.store, self.id);
            let _ = Python::try_attach(|py| py.detach(|| store.release(id)));
        }
    }
}
