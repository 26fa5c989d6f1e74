//! Backends that misbehave on purpose, for tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::backend::{Backend, BackendInfo, IoBatch};
use crate::error::{Error, Result};

/// Fails every operation from a given one on, as a full or a broken disk would.
pub struct FailingBackend<B> {
    inner: B,
    operations_left: AtomicU64,
    errno: i32,
}

impl<B: Backend> FailingBackend<B> {
    /// Lets `operations` batches pass and then fails with `errno`.
    pub fn after(operations: u64, errno: i32, inner: B) -> Self {
        Self { inner, operations_left: AtomicU64::new(operations), errno }
    }

    fn pass(&self) -> Result<()> {
        let left = self.operations_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        left.map(drop)
            .map_err(|_| Error::io("an injected fault: the operation", std::io::Error::from_raw_os_error(self.errno)))
    }
}

impl<B: Backend> Backend for FailingBackend<B> {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn alignment_bytes(&self) -> usize {
        self.inner.alignment_bytes()
    }

    fn info(&self) -> BackendInfo {
        self.inner.info()
    }

    fn read(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        match self.pass() {
            Ok(()) => self.inner.read(batch),
            Err(error) => (batch, Err(error)),
        }
    }

    fn write(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        match self.pass() {
            Ok(()) => self.inner.write(batch),
            Err(error) => (batch, Err(error)),
        }
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

/// A gate that starts closed or open.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    blocked: u64,
}

impl Gate {
    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).open = true;
        self.changed.notify_all();
    }

    /// Returns once `count` operations have come to the closed gate.
    pub fn wait_until_blocked(&self, count: u64) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(state, |state| state.blocked < count).unwrap_or_else(PoisonError::into_inner));
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.open {
            state.blocked += 1;
            self.changed.notify_all();
        }
        drop(self.changed.wait_while(state, |state| !state.open).unwrap_or_else(PoisonError::into_inner));
    }
}

/// Blocks every read and write until its gate is open.
pub struct GatedBackend {
    inner: Box<dyn Backend>,
    gate: Arc<Gate>,
}

impl GatedBackend {
    /// Puts a gate in front of a backend.
    pub fn new(inner: Box<dyn Backend>, gate: Arc<Gate>) -> Self {
        Self { inner, gate }
    }
}

impl Backend for GatedBackend {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn alignment_bytes(&self) -> usize {
        self.inner.alignment_bytes()
    }

    fn info(&self) -> BackendInfo {
        self.inner.info()
    }

    fn read(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        self.gate.pass();
        self.inner.read(batch)
    }

    fn write(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        self.gate.pass();
        self.inner.write(batch)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}
