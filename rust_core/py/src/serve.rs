//! An inference engine, and one in virtual time.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use serde_json::{Value, json};
use tiermem_core::backend::{BackendInfo, CompletionMode};
use tiermem_core::device::{DeviceSnapshot, DeviceSpec, DeviceStats};
use tiermem_core::embedding::RowType;
use tiermem_core::serve;
use tiermem_core::{Error, ErrorKind};

use crate::buffer::Bytes;
use crate::error::to_python;
use crate::{parse_json, stats};

fn row_type(name: &str) -> PyResult<RowType> {
    parse_json("row type", &Value::from(name).to_string())
}

fn over(what: &str) -> PyErr {
    to_python(Error::new(ErrorKind::Closed, format!("this {what} is over")))
}

fn devices(spec: &DeviceSpec, backend: &BackendInfo, snapshots: &[DeviceSnapshot], elapsed_ns: u64) -> Vec<Value> {
    let of = |snapshot: &DeviceSnapshot| {
        stats::device(&DeviceStats::new(spec, backend.clone(), snapshot.clone(), elapsed_ns, spec.capacity_bytes))
    };
    snapshots.iter().map(of).collect()
}

/// Tables in memory and on a device.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct ServeEngine {
    inner: Arc<serve::Engine>,
}

#[pymethods]
impl ServeEngine {
    #[new]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<Self> {
        let config: serve::EngineConfig = parse_json("serving", config_json)?;
        let inner = py.detach(|| serve::Engine::open(config)).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    fn rows_per_load(&self, table: usize) -> PyResult<u64> {
        self.inner.rows_per_load(table).map_err(to_python)
    }

    fn new_version(&self, py: Python<'_>) -> PyResult<NewVersion> {
        let version = py.detach(|| self.inner.new_version()).map_err(to_python)?;
        Ok(NewVersion { engine: Arc::clone(&self.inner), version })
    }

    fn roll_back(&self, py: Python<'_>, warm: bool) -> PyResult<u64> {
        py.detach(|| self.inner.roll_back(warm)).map_err(to_python)
    }

    fn update(&self, py: Python<'_>, table: usize, ids: Bytes, values: Bytes) -> PyResult<()> {
        // A negative id is a large one, and no row.
        let ids: Vec<u64> = ids.values::<i64>()?.iter().map(|&id| id as u64).collect();
        let values = values.values::<u8>()?;
        py.detach(|| self.inner.update(table, &ids, values)).map_err(to_python)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.flush()).map_err(to_python)
    }

    /// (ids, where each bag begins) of each table.
    fn begin(&self, py: Python<'_>, bags: Vec<(Bytes, Bytes)>) -> PyResult<QueryLookup> {
        let views: Vec<(&[i64], &[i64])> =
            bags.iter().map(|(ids, starts)| Ok((ids.values()?, starts.values()?))).collect::<PyResult<_>>()?;
        let lookup = py.detach(|| self.inner.begin(&views)).map_err(to_python)?;
        Ok(QueryLookup { inner: Mutex::new(Some(lookup)) })
    }

    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }

    fn stats_json(&self, py: Python<'_>) -> String {
        let (found, now_ns) = py.detach(|| (self.inner.stats(), self.inner.now_ns()));
        json!({
            "memory": found.memory,
            "cached_bytes": found.cached_bytes,
            "cached_rows": found.cached_rows,
            "pooled_results": found.pooled_results,
            "caches": found.caches,
            "traffic": found.traffic,
            "updated_rows": found.updated_rows,
            "version": found.version,
            "engine": found.backend.engine,
            "direct": found.backend.direct,
            "polled": found.backend.completion == CompletionMode::Polling,
            "fallback_reason": found.backend.fallback_reason,
            "devices": devices(self.inner.device(), &found.backend, &found.devices, now_ns),
            "lateness": stats::lateness(&found.lateness),
        })
        .to_string()
    }
}

/// A version that is being loaded.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct NewVersion {
    engine: Arc<serve::Engine>,
    version: serve::NewVersion,
}

#[pymethods]
impl NewVersion {
    #[getter]
    fn number(&self) -> u64 {
        self.version.number()
    }

    fn load(&self, py: Python<'_>, table: usize, from: &str, rows: Bytes) -> PyResult<()> {
        let (from, rows) = (row_type(from)?, rows.values::<u8>()?);
        py.detach(|| self.engine.load(&self.version, table, from, rows)).map_err(to_python)
    }

    /// Rows as int32.
    fn set_index_map(&self, py: Python<'_>, table: usize, rows: Bytes) -> PyResult<()> {
        let rows: Vec<i32> = rows.values::<u8>()?.as_chunks().0.iter().map(|four| i32::from_ne_bytes(*four)).collect();
        py.detach(|| self.engine.set_index_map(&self.version, table, rows)).map_err(to_python)
    }

    fn commit(&self, py: Python<'_>, warm: bool) -> PyResult<u64> {
        py.detach(|| self.engine.commit(&self.version, warm)).map_err(to_python)
    }
}

/// One query under way.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct QueryLookup {
    inner: Mutex<Option<serve::Lookup>>,
}

#[pymethods]
impl QueryLookup {
    #[getter]
    fn version(&self) -> PyResult<u64> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.as_ref().map(serve::Lookup::version).ok_or_else(|| over("query"))
    }

    fn pool_memory(&self, py: Python<'_>, mut out: Bytes) -> PyResult<()> {
        let out = out.values_mut::<f32>()?;
        py.detach(|| {
            let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.as_ref().map(|lookup| lookup.pool_memory(out)).transpose()
        })
        .map_err(to_python)?
        .ok_or_else(|| over("query"))
    }

    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.as_mut().map(serve::Lookup::wait).transpose()
        })
        .map_err(to_python)?
        .ok_or_else(|| over("query"))
    }

    fn finish(&self, py: Python<'_>, mut out: Bytes) -> PyResult<()> {
        let out = out.values_mut::<f32>()?;
        py.detach(|| {
            let lookup = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
            lookup.map(|lookup| lookup.finish(out)).transpose()
        })
        .map_err(to_python)?
        .ok_or_else(|| over("query"))
    }

    /// Gives up: waits for its reads and forgets them.
    fn abandon(&self, py: Python<'_>) {
        py.detach(|| drop(self.inner.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}

/// An engine in virtual time.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct ServeSimulation {
    inner: Mutex<serve::Simulation>,
    device: DeviceSpec,
}

impl ServeSimulation {
    fn with<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut serve::Simulation) -> T + Send) -> T {
        py.detach(|| work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[pymethods]
impl ServeSimulation {
    #[new]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<Self> {
        let config: serve::SimulationConfig = parse_json("simulation", config_json)?;
        let device = config.serve.device.spec.clone();
        let inner = py.detach(|| serve::Simulation::new(config)).map_err(to_python)?;
        Ok(Self { inner: Mutex::new(inner), device })
    }

    /// How many queries a trace has; `None` if they are generated.
    fn queries(&self, py: Python<'_>) -> Option<u64> {
        self.with(py, |simulation| simulation.queries())
    }

    fn memory_json(&self, py: Python<'_>) -> String {
        json!(self.with(py, |simulation| simulation.memory())).to_string()
    }

    fn warm_up(&self, py: Python<'_>, first_query: u64, queries: u64, parts: u64) -> String {
        let found = self.with(py, |simulation| simulation.warm_up(first_query, queries, parts.max(1)));
        let part = |part: &serve::WarmUpPart| json!({"queries": part.queries, "caches": part.caches, "pages": part.pages.0, "page_misses": part.pages.1});
        json!(found.iter().map(part).collect::<Vec<_>>()).to_string()
    }

    fn cool_down(&self, py: Python<'_>) {
        self.with(py, serve::Simulation::cool_down);
    }

    fn run(&self, py: Python<'_>, load_json: &str) -> PyResult<String> {
        let load: serve::Load = parse_json("load", load_json)?;
        let found = self.with(py, |simulation| simulation.run(&load)).map_err(to_python)?;
        let phantom = BackendInfo {
            engine: "phantom",
            direct: false,
            huge_pages: false,
            registered_buffers: false,
            completion: CompletionMode::Interrupt,
            fallback_reason: String::new(),
        };
        Ok(json!({
            "latency": stats::latency(found.latency.summary()),
            "queries": found.queries,
            "elapsed_ns": found.elapsed_ns,
            "gave_up": found.gave_up,
            "busy_ns": found.busy_ns,
            "caches": found.caches,
            "reads": found.reads,
            "pages": found.pages.0,
            "page_misses": found.pages.1,
            "devices": devices(&self.device, &phantom, &found.devices, found.elapsed_ns),
            "cached_bytes": found.cached_bytes,
        })
        .to_string())
    }
}
