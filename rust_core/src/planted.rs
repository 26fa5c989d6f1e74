//! Faults that a test plants in the store, to see that the tests of exactness would notice them. Without the feature
//! `planted-faults` there are none, and asking costs nothing.

/// What can be made to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Every third changed row is not marked as newer than below.
    SkippedDirtyBit = 1,
    /// The writes of a job come after the reads of the next one.
    StaleRead,
    /// A row that two batches have in flight is given back with the first of them.
    LostPin,
}

#[cfg(feature = "planted-faults")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants a fault, or takes it out again.
#[cfg(feature = "planted-faults")]
pub fn plant(fault: Option<Fault>) {
    PLANTED.store(fault.map_or(0, |fault| fault as u8), std::sync::atomic::Ordering::SeqCst);
}

/// Whether this fault is planted.
#[cfg(feature = "planted-faults")]
pub(crate) fn is_planted(fault: Fault) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::SeqCst) == fault as u8
}

/// Whether this fault is planted.
#[cfg(not(feature = "planted-faults"))]
#[inline]
pub(crate) fn is_planted(_fault: Fault) -> bool {
    false
}
