//! The coordinator over rings that refuse, and over one that is slow.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// A kernel that takes requests and, from some moment on, refuses every call for good.
#[derive(Default)]
struct RefusingRing {
    refuses: AtomicBool,
    pushed: std::sync::Mutex<Vec<u64>>,
}

impl Ring for RefusingRing {
    fn depth(&self) -> usize {
        4
    }

    fn group(&self) -> usize {
        1
    }

    unsafe fn push(&self, number: u64, _: Piece) {
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }

    fn submit(&self) -> std::io::Result<()> {
        let refuses = self.refuses.load(Ordering::Relaxed);
        if refuses { Err(std::io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
    }

    fn wait(&self, _: Option<Duration>) -> std::io::Result<()> {
        self.refuses.store(true, Ordering::Relaxed);
        self.submit()
    }

    fn take(&self, completions: &mut Vec<(u64, i32)>) {
        // What was lost completes late, all the same.
        if self.refuses.load(Ordering::Relaxed) {
            completions
                .extend(self.pushed.lock().unwrap_or_else(PoisonError::into_inner).drain(..).map(|number| (number, 8)));
        }
    }

    fn failed(&self, _: Operation, error: std::io::Error, _: &Extent) -> Error {
        Error::io("moving", error)
    }
}

/// A kernel that completes nothing until it is told to.
#[derive(Default)]
struct SlowRing {
    pushed: std::sync::Mutex<Vec<u64>>,
    completes: AtomicBool,
}

impl Ring for SlowRing {
    fn depth(&self) -> usize {
        4
    }

    fn group(&self) -> usize {
        1
    }

    unsafe fn push(&self, number: u64, _: Piece) {
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }

    fn submit(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn wait(&self, limit: Option<Duration>) -> std::io::Result<()> {
        assert!(limit.is_some() || self.completes.load(Ordering::Relaxed), "this would hang");
        Ok(())
    }

    fn take(&self, completions: &mut Vec<(u64, i32)>) {
        if self.completes.load(Ordering::Relaxed) {
            let pushed = std::mem::take(&mut *self.pushed.lock().unwrap_or_else(PoisonError::into_inner));
            completions.extend(pushed.into_iter().map(|number| (number, 8)));
        }
    }

    fn failed(&self, _: Operation, error: std::io::Error, _: &Extent) -> Error {
        Error::io("moving", error)
    }
}

#[test]
fn a_bounded_wait_ends_without_the_batch_and_the_batch_can_still_be_waited_for() {
    let coordinator = Arc::new(Coordinator::new(SlowRing::default()));
    let extents = vec![Extent { offset: 0, buffer_offset: 0, nbytes: 8 }; 6];
    let batch = IoBatch { buffer: AlignedBuffer::zeroed(8), extents };
    let in_flight = InFlight::on_ring(&coordinator, coordinator.start(Operation::Read, batch));
    assert!(!in_flight.wait_for(Duration::ZERO));
    assert!(!in_flight.wait_for(Duration::from_micros(50)));
    coordinator.ring().completes.store(true, Ordering::Relaxed);
    assert!(in_flight.wait_for(Duration::from_secs(3600)));
    assert!(in_flight.wait_for(Duration::ZERO), "it can be asked again");
    in_flight.wait().1.unwrap();
    assert!(InFlight::done(empty_batch(), Ok(())).wait_for(Duration::ZERO));
}

#[test]
fn a_ring_that_breaks_fails_what_it_has_and_what_comes_and_hangs_nobody() {
    let coordinator = Arc::new(Coordinator::new(RefusingRing::default()));
    let batch = || IoBatch {
        buffer: AlignedBuffer::zeroed(64),
        extents: vec![Extent { offset: 0, buffer_offset: 0, nbytes: 8 }; 8],
    };
    let start = || InFlight::on_ring(&coordinator, coordinator.start(Operation::Read, batch()));
    let (first, second) = (start(), start());
    let (lost, error) = first.wait();
    assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert!(lost.buffer.is_empty(), "the kernel may still write there");
    let later = start();
    assert_eq!(later.wait().1.unwrap_err().raw_os_error(), Some(libc::EPERM));
    let (whole, error) = second.wait();
    assert!(error.is_err());
    assert_eq!(whole.buffer.len(), 64, "nothing of it was handed over");
    drop(start());
    coordinator.drain();
}
