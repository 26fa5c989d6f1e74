//! Memory of Python objects as slices. The only file of the binding with `unsafe`.
//!
//! A caller must not change an input, nor touch an output, while a call runs; `tiermem._interop`
//! allocates outputs per call and publishes them afterwards.
#![expect(unsafe_code, reason = "the buffer protocol hands out raw pointers")]

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Plain values without invalid bit patterns.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for i64 {}
impl Plain for f32 {}

/// A contiguous byte buffer of a Python object, kept alive by this value.
pub(crate) struct Bytes {
    inner: PyBuffer<u8>,
}

impl Bytes {
    fn check<T: Plain>(&self) -> PyResult<usize> {
        let nbytes = self.inner.len_bytes();
        if !nbytes.is_multiple_of(size_of::<T>()) || !(self.inner.buf_ptr() as usize).is_multiple_of(align_of::<T>()) {
            return Err(PyValueError::new_err("a buffer does not hold whole, aligned values of its type"));
        }
        Ok(nbytes / size_of::<T>())
    }

    /// The values to read.
    pub(crate) fn values<T: Plain>(&self) -> PyResult<&[T]> {
        let count = self.check::<T>()?;
        if count == 0 {
            return Ok(&[]);
        }
        // SAFETY: the buffer is contiguous, aligned and of this length (checked), lives as long as
        // `self`, every bit pattern is a value of a `Plain` type, and nobody writes it during the call.
        Ok(unsafe { std::slice::from_raw_parts(self.inner.buf_ptr().cast_const().cast::<T>(), count) })
    }

    /// The values to fill.
    pub(crate) fn values_mut<T: Plain>(&mut self) -> PyResult<&mut [T]> {
        if self.inner.readonly() {
            return Err(PyTypeError::new_err("an output buffer is read-only"));
        }
        let count = self.check::<T>()?;
        if count == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `values`; the buffer is writable (checked), and the caller gave it to this call alone.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.inner.buf_ptr().cast::<T>(), count) })
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Bytes {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let inner = PyBuffer::<u8>::get(&object)?;
        if !inner.is_c_contiguous() {
            return Err(PyTypeError::new_err("a buffer is not contiguous"));
        }
        Ok(Self { inner })
    }
}
