//! A gate in front of the backends of a store, for tests of blocking calls.

use std::sync::Arc;

use pyo3::prelude::*;

/// A closed gate.
#[pyclass(frozen, module = "tiermem._core")]
#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) inner: Arc<tiermem_core::testkit::Gate>,
}

#[pymethods]
impl Gate {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn open(&self) {
        self.inner.open();
    }

    fn wait_until_blocked(&self, py: Python<'_>, count: u64) {
        py.detach(|| self.inner.wait_until_blocked(count));
    }
}
