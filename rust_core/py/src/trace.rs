//! Trace files, generators, and streams of accesses.

use std::path::PathBuf;
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::{Deserialize, Serialize};
use tiermem_core::cache::{PolicyKind, Replay};
use tiermem_core::trace::{self, Bags, Description, Sample, Selection};
use tiermem_core::{Error, ErrorKind};

use crate::buffer::Bytes;
use crate::error::to_python;
use crate::parse_json;

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn closed(what: &str) -> PyErr {
    to_python(Error::new(ErrorKind::Closed, format!("this {what} is closed")))
}

/// A trace that is being written.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct TraceWriter {
    inner: Mutex<Option<trace::TraceWriter>>,
}

#[pymethods]
impl TraceWriter {
    #[new]
    fn new(path: PathBuf, description_json: &str) -> PyResult<Self> {
        let description: Description = parse_json("trace", description_json)?;
        let inner = trace::TraceWriter::create(&path, description).map_err(to_python)?;
        Ok(Self { inner: Mutex::new(Some(inner)) })
    }

    /// (lengths int64 [bags], ids int64 [ids]) of each table, as bytes.
    fn write(&self, py: Python<'_>, batch: Vec<(Bytes, Bytes)>) -> PyResult<()> {
        let views: Vec<(&[i64], &[i64])> =
            batch.iter().map(|(lengths, ids)| Ok((lengths.values()?, ids.values()?))).collect::<PyResult<_>>()?;
        py.detach(|| {
            let bags =
                views.iter().map(|(lengths, ids)| Bags::from_signed(lengths, ids)).collect::<Result<Vec<_>, _>>()?;
            let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            inner.as_mut().map(|writer| writer.write(&bags)).transpose()
        })
        .map_err(to_python)?
        .ok_or_else(|| closed("trace"))
    }

    fn finish(&self, py: Python<'_>) -> PyResult<String> {
        let writer = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let writer = writer.ok_or_else(|| closed("trace"))?;
        py.detach(|| writer.finish()).map(|totals| json(&totals)).map_err(to_python)
    }

    fn abort(&self) {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}

/// A trace that is being read.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct TraceReader {
    inner: Mutex<(trace::TraceReader, Vec<Bags>)>,
}

#[pymethods]
impl TraceReader {
    #[new]
    fn new(path: PathBuf) -> PyResult<Self> {
        let inner = trace::TraceReader::open(&path).map_err(to_python)?;
        Ok(Self { inner: Mutex::new((inner, Vec::new())) })
    }

    fn description_json(&self) -> String {
        json(self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0.description())
    }

    /// (lengths int64 [bags], ids int64 [ids]) of each table, as bytes; `None` after the last batch.
    #[expect(clippy::type_complexity, reason = "one pair of byte strings per table")]
    fn read<'py>(&self, py: Python<'py>) -> PyResult<Option<Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>>> {
        let columns = py.detach(|| {
            let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (reader, batch) = &mut *inner;
            let more = reader.read(batch)?;
            Ok::<_, Error>(more.then(|| batch.iter().map(Bags::to_signed_bytes).collect::<Vec<_>>()))
        });
        let columns = columns.map_err(to_python)?;
        let bytes = |(lengths, ids): &(Vec<u8>, Vec<u8>)| (PyBytes::new(py, lengths), PyBytes::new(py, ids));
        Ok(columns.map(|columns| columns.iter().map(bytes).collect()))
    }
}

/// Writes a generated trace; gives its counts as JSON.
#[pyfunction]
pub(crate) fn synthesize_trace(py: Python<'_>, config_json: &str, origin: &str, path: PathBuf) -> PyResult<String> {
    let config: trace::SynthConfig = parse_json("generator", config_json)?;
    // A signal handler that raises ends it; nothing of the trace is left then.
    let mut raised = None;
    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method is not general enough in its lifetime")]
    let go_on = || match Python::attach(|py| py.check_signals()) {
        Ok(()) => true,
        Err(error) => {
            raised = Some(error);
            false
        }
    };
    let totals = py.detach(|| trace::synthesize(&config, origin, &path, go_on));
    raised.map_or_else(|| totals.map(|totals| json(&totals)).map_err(to_python), Err)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamConfig {
    tables: Vec<usize>,
    dedupe: bool,
    block_bytes: u64,
    sample_rate: Option<f64>,
    sample_seed: u64,
}

fn replay_config(policy: &str, rows: usize, window_batches: usize, seed: u64) -> PyResult<Replay> {
    let policy = policy.parse::<PolicyKind>().map_err(to_python)?;
    Ok(Replay { policy, rows, window_batches, seed })
}

/// A trace as one stream of rows, in memory.
#[pyclass(frozen, module = "tiermem._core")]
pub(crate) struct AccessStream {
    inner: trace::AccessStream,
}

#[pymethods]
impl AccessStream {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, config_json: &str) -> PyResult<Self> {
        let config: StreamConfig = parse_json("stream", config_json)?;
        let selection = Selection {
            tables: config.tables,
            dedupe: config.dedupe,
            block_bytes: config.block_bytes,
            sample: config.sample_rate.map(|rate| Sample { rate, seed: config.sample_seed }),
        };
        let inner = py.detach(|| trace::AccessStream::load(&path, &selection)).map_err(to_python)?;
        Ok(Self { inner })
    }

    /// (accesses in memory, accesses of the selection, distinct rows in memory)
    fn sizes(&self) -> (usize, u64, usize) {
        (self.inner.len(), self.inner.accesses_all(), self.inner.distinct())
    }

    /// Accesses of each row, uint32, as bytes.
    fn counts<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let counts = py.detach(|| self.inner.counts().iter().flat_map(|count| count.to_ne_bytes()).collect::<Vec<_>>());
        PyBytes::new(py, &counts)
    }

    /// (how often each stack distance occurs, uint64, as bytes; accesses that are the first of their row)
    fn stack_distances<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, u64) {
        let (counts, first) = py.detach(|| {
            let (counts, first) = self.inner.stack_distances();
            (counts.iter().flat_map(|count| count.to_ne_bytes()).collect::<Vec<_>>(), first)
        });
        (PyBytes::new(py, &counts), first)
    }

    /// Points of lru at these sizes, as JSON.
    fn lru_points(&self, py: Python<'_>, rows: Vec<u64>) -> PyResult<String> {
        py.detach(|| self.inner.lru_points(&rows)).map(|points| json(&points)).map_err(to_python)
    }

    /// One point of a policy, as JSON.
    #[pyo3(signature = (policy, rows, *, window_batches, seed))]
    fn replay_point(
        &self,
        py: Python<'_>,
        policy: &str,
        rows: usize,
        window_batches: usize,
        seed: u64,
    ) -> PyResult<String> {
        let config = replay_config(policy, rows, window_batches, seed)?;
        py.detach(|| self.inner.replay_point(&config)).map(|point| json(&point)).map_err(to_python)
    }

    /// Hits of a policy, and nothing else.
    #[pyo3(signature = (policy, rows, *, window_batches, seed))]
    fn replay_hits(
        &self,
        py: Python<'_>,
        policy: &str,
        rows: usize,
        window_batches: usize,
        seed: u64,
    ) -> PyResult<u64> {
        let config = replay_config(policy, rows, window_batches, seed)?;
        py.detach(|| self.inner.replay_hits(&config)).map_err(to_python)
    }
}
