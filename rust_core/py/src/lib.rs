//! The binding: extract arguments, detach from the interpreter, call the core, convert. No logic.

#![deny(unsafe_code)]
#![allow(clippy::needless_pass_by_value, reason = "extracted arguments are owned, that is how the buffers stay alive")]

mod buffer;
mod device;
mod error;
mod gate;
mod nbd;
mod serve;
mod stats;
mod store;
mod trace;

use pyo3::prelude::*;

/// Emulated devices and tiered stores; see `_core.pyi` for the prose.
#[pymodule(gil_used = true)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::device::{Device, run_workload};
    #[pymodule_export]
    use crate::error::error_classes;
    #[pymodule_export]
    use crate::gate::Gate;
    #[pymodule_export]
    use crate::nbd::NbdServer;
    #[pymodule_export]
    use crate::serve::{NewVersion, QueryLookup, ServeEngine, ServeSimulation};
    #[pymodule_export]
    use crate::store::{Store, Ticket};
    #[pymodule_export]
    use crate::trace::{AccessStream, TraceReader, TraceWriter, synthesize_trace};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        if cfg!(debug_assertions) {
            let text = c"this is a debug build of tiermem, many times slower than a release build; do not measure it";
            PyErr::warn(module.py(), &module.py().get_type::<pyo3::exceptions::PyRuntimeWarning>(), text, 1)?;
        }
        module.add("BUILD_PROFILE", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    #[pyfunction]
    fn io_uring_refusal(py: Python<'_>) -> Option<String> {
        py.detach(tiermem_core::backend::probe_io_uring).err().map(|error| error.to_string())
    }

    /// (why direct I/O is refused, alignment of transfers in bytes, whether buffers are registered with the kernel, why
    /// completions are not polled for)
    #[pyfunction]
    fn probe_directory(
        py: Python<'_>,
        directory: std::path::PathBuf,
    ) -> PyResult<(Option<String>, usize, bool, Option<String>)> {
        use tiermem_core::backend::{BackendConfig, CompletionMode, Engine, open_backend};
        let open = |engine| {
            let completion = CompletionMode::Polling;
            let config = BackendConfig { directory: Some(directory.clone()), completion, ..BackendConfig::new(engine) };
            py.detach(|| open_backend(&config, 1 << 20)).map_err(crate::error::to_python)
        };
        let file = open(Engine::File)?;
        let info = file.info();
        let refusal = (!info.direct).then_some(info.fallback_reason);
        let ring = open(Engine::Auto)?.info();
        let unpolled = (ring.completion != CompletionMode::Polling).then_some(ring.fallback_reason);
        Ok((refusal, file.alignment_bytes(), ring.registered_buffers, unpolled))
    }

    #[pyfunction]
    fn huge_pages_allowed() -> bool {
        tiermem_core::backend::huge_pages_allowed()
    }

    #[pyfunction]
    fn free_bytes(py: Python<'_>, directory: std::path::PathBuf) -> PyResult<u64> {
        py.detach(|| tiermem_core::backend::free_bytes(&directory)).map_err(crate::error::to_python)
    }

    #[pyfunction]
    fn check_device(spec_json: &str) -> PyResult<()> {
        tiermem_core::device::DeviceSpec::from_json(spec_json).map(drop).map_err(crate::error::to_python)
    }
}

/// A JSON document of a configuration part.
fn parse_json<T: for<'de> serde::Deserialize<'de>>(what: &str, text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|error| {
        let message = format!("not a {what} configuration: {error}");
        error::to_python(tiermem_core::Error::new(tiermem_core::ErrorKind::Config, message))
    })
}
