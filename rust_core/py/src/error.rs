//! The one place where errors of the core become Python exceptions.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use tiermem_core::{Error, ErrorKind};

/// Name of the class in `tiermem.errors` for each kind.
fn class_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Config => "ConfigError",
        ErrorKind::Input => "InputError",
        ErrorKind::Capacity => "CapacityError",
        ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Unsupported => "DeviceError",
        ErrorKind::Corruption => "CorruptionError",
        ErrorKind::Closed => "ClosedError",
        _ => "TiermemError",
    }
}

/// Every kind with its class, for the test that walks them.
#[pyfunction]
pub(crate) fn error_classes() -> Vec<(String, &'static str)> {
    ErrorKind::ALL.iter().map(|&kind| (format!("{kind:?}"), class_name(kind))).collect()
}

/// An exception of the class for this kind; `DeviceError` carries the errno where one is known.
pub(crate) fn to_python(error: Error) -> PyErr {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Python::attach(|py| {
        let make = || -> PyResult<PyErr> {
            let module = MODULE.get_or_try_init(py, || py.import("tiermem.errors").map(Bound::unbind))?;
            let class = module.bind(py).getattr(class_name(error.kind()))?.cast_into::<PyType>()?;
            let message = error.to_string();
            Ok(match error.raw_os_error() {
                Some(errno) if class_name(error.kind()) == "DeviceError" => PyErr::from_type(class, (errno, message)),
                _ => PyErr::from_type(class, message),
            })
        };
        make().unwrap_or_else(|failure| failure)
    })
}
