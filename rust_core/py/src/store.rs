//! A tiered store and the tickets of its batches.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use tiermem_core::backend::Backend;
use tiermem_core::embedding::Pooling;
use tiermem_core::store::{Lookup, Pooled, Store as CoreStore, StoreConfig, TicketId};
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

fn pooled(mean: bool, sample_weights: Option<&Bytes>) -> PyResult<Pooled<'_>> {
    let pooling = if mean { Pooling::Mean } else { Pooling::Sum };
    Ok(Pooled { pooling, sample_weights: sample_weights.map(Bytes::values::<f32>).transpose()? })
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

    fn step(&self, py: Python<'_>, lr: f32) -> PyResult<()> {
        py.detach(|| self.inner.step(lr)).map_err(to_python)
    }

    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.discard()).map_err(to_python)
    }

    fn read_rows(
        &self,
        py: Python<'_>,
        table: usize,
        start: u64,
        mut weights: Bytes,
        mut state: Bytes,
    ) -> PyResult<()> {
        let (weights, state) = (weights.values_mut::<f32>()?, state.values_mut::<f32>()?);
        py.detach(|| self.inner.read_rows(table, start, weights, state)).map_err(to_python)
    }

    #[pyo3(signature = (table, start, weights, state = None))]
    fn write_rows(
        &self,
        py: Python<'_>,
        table: usize,
        start: u64,
        weights: Bytes,
        state: Option<Bytes>,
    ) -> PyResult<()> {
        let weights = weights.values::<f32>()?;
        let state = state.as_ref().map(Bytes::values::<f32>).transpose()?;
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

    #[getter]
    fn state_floats(&self) -> usize {
        self.inner.state_floats()
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
        let signal = Mutex::new(None);
        let is_interrupted = || match Python::attach(check_signals) {
            Ok(()) => false,
            Err(error) => {
                *signal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                true
            }
        };
        let waited = py.detach(|| self.store.wait(self.id, &is_interrupted));
        match signal.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => waited.map_err(to_python),
        }
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        if self.released.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        py.detach(|| self.store.release(self.id)).map_err(to_python)
    }

    #[pyo3(signature = (lookup, out, *, mean, sample_weights = None))]
    fn gather(
        &self,
        py: Python<'_>,
        lookup: usize,
        mut out: Bytes,
        mean: bool,
        sample_weights: Option<Bytes>,
    ) -> PyResult<()> {
        let (pooled, out) = (pooled(mean, sample_weights.as_ref())?, out.values_mut::<f32>()?);
        py.detach(|| self.store.gather(self.id, lookup, pooled, out)).map_err(to_python)
    }

    #[pyo3(signature = (lookup, gradients, *, mean, sample_weights = None))]
    fn accumulate(
        &self,
        py: Python<'_>,
        lookup: usize,
        gradients: Bytes,
        mean: bool,
        sample_weights: Option<Bytes>,
    ) -> PyResult<()> {
        let (pooled, gradients) = (pooled(mean, sample_weights.as_ref())?, gradients.values::<f32>()?);
        py.detach(|| self.store.accumulate(self.id, lookup, pooled, gradients)).map_err(to_python)
    }

    #[pyo3(signature = (lookup, gradients, lr, *, mean, sample_weights = None))]
    fn update(
        &self,
        py: Python<'_>,
        lookup: usize,
        gradients: Bytes,
        lr: f32,
        mean: bool,
        sample_weights: Option<Bytes>,
    ) -> PyResult<()> {
        let (pooled, gradients) = (pooled(mean, sample_weights.as_ref())?, gradients.values::<f32>()?);
        py.detach(|| self.store.update(self.id, lookup, pooled, gradients, lr)).map_err(to_python)
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
