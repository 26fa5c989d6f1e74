//! Backends that misbehave on purpose, or tell what was asked of them, for tests.

mod counting;
mod crashing;
mod gated;

use std::sync::atomic::{AtomicU64, Ordering};

pub use counting::{Counted, CountingBackend};
pub use crashing::CrashingBackend;
pub use gated::{Gate, GatedBackend};

use crate::backend::{Backend, InFlight, IoBatch, Operation, Overlay};
use crate::error::{Error, Result};

/// Fails every operation from a given one on, as a full or a broken disk would, or some and then no more.
pub struct FailingBackend<B> {
    inner: B,
    operations_left: AtomicU64,
    failures_left: AtomicU64,
    errno: i32,
}

impl<B: Backend> FailingBackend<B> {
    /// Lets `operations` batches pass and then fails with `errno`.
    pub fn after(operations: u64, errno: i32, inner: B) -> Self {
        Self::for_a_while(operations, u64::MAX, errno, inner)
    }

    /// Lets `operations` batches pass, fails `failures` times, and works again.
    pub fn for_a_while(operations: u64, failures: u64, errno: i32, inner: B) -> Self {
        let (operations_left, failures_left) = (AtomicU64::new(operations), AtomicU64::new(failures));
        Self { inner, operations_left, failures_left, errno }
    }

    fn pass(&self) -> Result<()> {
        let take =
            |left: &AtomicU64| left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        if take(&self.operations_left).is_ok() || take(&self.failures_left).is_err() {
            return Ok(());
        }
        Err(Error::io("an injected fault: the operation", std::io::Error::from_raw_os_error(self.errno)))
    }
}

impl<B: Backend> Overlay for FailingBackend<B> {
    fn below(&self) -> &dyn Backend {
        &self.inner
    }

    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight {
        match self.pass() {
            Ok(()) => self.inner.start(operation, batch),
            Err(error) => InFlight::done(batch, Err(error)),
        }
    }

    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        self.pass()?;
        self.inner.discard(offset, nbytes)
    }
}
