//! The only allocator of I/O memory. All `unsafe` about raw memory of the core is in this file.

#![expect(clippy::cast_ptr_alignment, reason = "the memory is aligned to 4096")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::error::{Error, ErrorKind, Result};

/// Owned, zeroed memory whose address is a multiple of 4096: what `O_DIRECT` asks for on every
/// filesystem that we know, and a page, so that large buffers cost nothing until touched.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    nbytes: usize,
}

fn refused(nbytes: usize) -> Error {
    Error::new(ErrorKind::Capacity, "this host has not enough memory").with_context("needed_bytes", nbytes)
}

/// Memory of this host in bytes.
pub fn physical_memory_bytes() -> u64 {
    // SAFETY: `sysconf` reads a number and has no preconditions.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: as above.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(page_bytes).unwrap_or(0))
}

#[repr(align(4096))]
struct Page;

// SAFETY: the buffer is the only owner of its allocation, and shared access is read-only.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; `&AlignedBuffer` gives only `&[u8]`.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// Alignment of the first byte.
    pub const ALIGNMENT_BYTES: usize = 4096;

    /// `nbytes` zero bytes; for sizes that follow from one batch.
    pub fn zeroed(nbytes: usize) -> Self {
        Self::try_zeroed(nbytes).unwrap_or_else(|_| handle_alloc_error(Self::layout(nbytes)))
    }

    /// `nbytes` zero bytes, or a `Capacity` error; for sizes that a user chose.
    pub fn try_zeroed(nbytes: usize) -> Result<Self> {
        if nbytes == 0 {
            // Aligned as well, since the empty float view needs it.
            return Ok(Self { start: NonNull::<Page>::dangling().cast(), nbytes });
        }
        if nbytes > isize::MAX as usize - Self::ALIGNMENT_BYTES {
            return Err(refused(nbytes));
        }
        let layout = Self::layout(nbytes);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        NonNull::new(start).map(|start| Self { start, nbytes }).ok_or_else(|| refused(nbytes))
    }

    fn layout(nbytes: usize) -> Layout {
        Layout::from_size_align(nbytes, Self::ALIGNMENT_BYTES).expect("a buffer is smaller than the address space")
    }

    /// The bytes as 32-bit floats. The length is rounded down to a whole float.
    pub fn as_f32(&self) -> &[f32] {
        // SAFETY: the memory is initialised, aligned to 4096 >= 4, owned, and every bit pattern is a float.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast_const().cast::<f32>(), self.nbytes / 4) }
    }

    /// The bytes as mutable 32-bit floats.
    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_f32`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast::<f32>(), self.nbytes / 4) }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `nbytes` initialised bytes (or dangling and the length is 0).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.nbytes) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.nbytes) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if self.nbytes > 0 {
            // SAFETY: the memory came from `alloc_zeroed` with this very layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.nbytes)) }
        }
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.nbytes)
    }
}

/// A view of floats as bytes, for copies between row slots and I/O buffers.
pub fn f32_as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: floats have no padding, and u8 has no alignment requirement.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_shared_between_views() {
        let mut buffer = AlignedBuffer::zeroed(8192);
        assert_eq!(buffer.as_ptr() as usize % AlignedBuffer::ALIGNMENT_BYTES, 0);
        assert!(buffer.iter().all(|&byte| byte == 0));
        buffer.as_f32_mut()[1] = 1.0;
        assert_eq!(&buffer[4..8], &1.0f32.to_le_bytes());
        assert_eq!(f32_as_bytes(&buffer.as_f32()[1..2]), &1.0f32.to_le_bytes());
        let mut empty = AlignedBuffer::zeroed(0);
        assert!(empty.is_empty() && empty.as_f32_mut().is_empty());
    }
}
