//! A backend that stands still until a test lets it go on.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::backend::{Backend, InFlight, IoBatch, Operation, Overlay};

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

impl Overlay for GatedBackend {
    fn below(&self) -> &dyn Backend {
        self.inner.as_ref()
    }

    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight {
        self.gate.pass();
        self.inner.start(operation, batch)
    }
}
