//! The only allocator of I/O memory.

#![expect(clippy::cast_ptr_alignment, reason = "the memory is aligned to 4096")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut, Range};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::{DataFile, DirectIo};
use crate::error::{Error, ErrorKind, Result};

/// Memory of at least this size is mapped: it costs nothing until touched, and may have huge pages.
const MAPPED_BYTES_MIN: usize = 2 << 20;

/// Owned memory, zeroed unless an arena lent it, whose address is a multiple of 4096: what `O_DIRECT` asks for on every
/// filesystem that we know.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    nbytes: usize,
    owner: Owner,
}

enum Owner {
    Heap,
    /// Held for its `Drop`.
    Mapping(#[expect(dead_code, reason = "unmaps the memory when it is dropped")] MmapRaw),
    Region(Arc<Arena>),
}

/// Size of the pages under a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// 2 MiB where the host allows them: fewer misses of the TLB.
    Huge,
    /// 4 KiB: touching one byte costs no more than that.
    Small,
}

fn refused(nbytes: usize) -> Error {
    Error::new(ErrorKind::Capacity, "this host has not enough memory").with_context("needed_bytes", nbytes)
}

/// Memory of this host in bytes.
pub fn physical_memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Whether the kernel gives huge pages to a mapping that asks for them.
pub fn huge_pages_allowed() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| !text.contains("[never]"))
}

fn map(nbytes: usize, pages: PageSize) -> Result<MmapRaw> {
    let mapping = MmapOptions::new().len(nbytes).map_anon().map_err(|_| refused(nbytes))?;
    let advice = if pages == PageSize::Huge { Advice::HugePage } else { Advice::NoHugePage };
    // A kernel without huge pages refuses the advice; the memory is as good.
    let _ = mapping.advise(advice);
    // Raw: pieces are lent out, and a slice over all of it would alias them.
    Ok(MmapRaw::from(mapping))
}

#[repr(align(4096))]
struct Page;

// SAFETY: the buffer is the only owner of its memory, and shared access is read-only.
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
        Self::try_zeroed_with(nbytes, PageSize::Huge)
    }

    /// As `try_zeroed`, with a say in the pages under large memory.
    pub fn try_zeroed_with(nbytes: usize, pages: PageSize) -> Result<Self> {
        if nbytes == 0 {
            // Aligned as well, since the empty float view needs it.
            return Ok(Self { start: NonNull::<Page>::dangling().cast(), nbytes, owner: Owner::Heap });
        }
        if nbytes > isize::MAX as usize - Self::ALIGNMENT_BYTES {
            return Err(refused(nbytes));
        }
        if nbytes >= MAPPED_BYTES_MIN {
            let mapping = map(nbytes, pages)?;
            let start = NonNull::new(mapping.as_mut_ptr()).ok_or_else(|| refused(nbytes))?;
            return Ok(Self { start, nbytes, owner: Owner::Mapping(mapping) });
        }
        let layout = Self::layout(nbytes);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        NonNull::new(start).map(|start| Self { start, nbytes, owner: Owner::Heap }).ok_or_else(|| refused(nbytes))
    }

    /// `nbytes` zero bytes of a file without a name in `directory`: memory that the kernel may page out there.
    ///
    /// # Errors
    ///
    /// As for a file backend.
    pub fn try_in_file(directory: &Path, nbytes: usize) -> Result<Self> {
        if nbytes == 0 {
            return Self::try_zeroed(0);
        }
        let mapping = DataFile::scratch(directory, nbytes as u64, DirectIo::Off)?.map()?;
        let start = NonNull::new(mapping.as_mut_ptr()).ok_or_else(|| refused(nbytes))?;
        Ok(Self { start, nbytes, owner: Owner::Mapping(mapping) })
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
        match &self.owner {
            // SAFETY: the memory came from `alloc_zeroed` with this very layout.
            Owner::Heap if self.nbytes > 0 => unsafe { dealloc(self.start.as_ptr(), Self::layout(self.nbytes)) },
            Owner::Heap | Owner::Mapping(_) => {}
            Owner::Region(arena) => arena.give_back(self.start, self.nbytes),
        }
    }
}

/// Memory that a kernel knows by number, lent out in pieces: the pages are pinned once and not at every request.
pub(super) struct Arena {
    mapping: MmapRaw,
    /// Sorted, never adjacent, in bytes from the start.
    free: Mutex<Vec<Range<usize>>>,
}

impl Arena {
    /// An arena of `nbytes`, a multiple of the alignment.
    pub(super) fn new(nbytes: usize) -> Result<Arc<Self>> {
        debug_assert!(nbytes.is_multiple_of(AlignedBuffer::ALIGNMENT_BYTES), "an arena has whole pages");
        Ok(Arc::new(Self {
            mapping: map(nbytes, PageSize::Huge)?,
            free: Mutex::new(std::iter::once(0..nbytes).collect()),
        }))
    }

    /// What to tell the kernel.
    pub(super) fn memory(&self) -> (*const u8, usize) {
        (self.mapping.as_ptr(), self.mapping.len())
    }

    /// Memory of the first gap that is large enough; what it holds is what its last user left.
    pub(super) fn lend(self: &Arc<Self>, nbytes: usize) -> Option<AlignedBuffer> {
        let rounded = nbytes.checked_next_multiple_of(AlignedBuffer::ALIGNMENT_BYTES).filter(|&bytes| bytes > 0)?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let place = free.iter().position(|gap| gap.len() >= rounded)?;
        let begin = free[place].start;
        free[place].start += rounded;
        if free[place].is_empty() {
            free.remove(place);
        }
        // SAFETY: `begin` lies inside the mapping.
        let start = unsafe { self.mapping.as_mut_ptr().add(begin) };
        NonNull::new(start).map(|start| AlignedBuffer { start, nbytes, owner: Owner::Region(Arc::clone(self)) })
    }

    /// Whether these bytes belong to the arena.
    pub(super) fn contains(&self, start: *const u8) -> bool {
        let begin = self.mapping.as_ptr() as usize;
        (begin..begin + self.mapping.len()).contains(&(start as usize))
    }

    fn give_back(&self, start: NonNull<u8>, nbytes: usize) {
        let begin = start.as_ptr() as usize - self.mapping.as_ptr() as usize;
        let mut gap = begin..begin + nbytes.next_multiple_of(AlignedBuffer::ALIGNMENT_BYTES);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut place = free.partition_point(|other| other.start < gap.start);
        if free.get(place).is_some_and(|after| after.start == gap.end) {
            gap.end = free.remove(place).end;
        }
        if place > 0 && free[place - 1].end == gap.start {
            place -= 1;
            gap.start = free.remove(place).start;
        }
        free.insert(place, gap);
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
        for pages in [PageSize::Huge, PageSize::Small] {
            let mut large = AlignedBuffer::try_zeroed_with(3 << 20, pages).unwrap();
            assert_eq!(large.as_ptr() as usize % AlignedBuffer::ALIGNMENT_BYTES, 0);
            large[(3 << 20) - 1] = 7;
            assert!(large.iter().map(|&byte| u64::from(byte)).sum::<u64>() == 7);
        }
    }

    #[test]
    fn memory_that_no_host_has_is_refused() {
        assert_eq!(AlignedBuffer::try_zeroed(1 << 50).unwrap_err().kind(), ErrorKind::Capacity);
        assert_eq!(AlignedBuffer::try_zeroed(usize::MAX).unwrap_err().kind(), ErrorKind::Capacity);
    }

    proptest::proptest! {
        /// Whatever is lent and given back in whatever order: pieces never overlap, and at the end all is one gap.
        #[test]
        fn an_arena_lends_disjoint_memory_and_gets_all_of_it_back(
            requests in proptest::collection::vec((1usize..40_000, proptest::prelude::any::<bool>(), 0usize..8), 1..60)
        ) {
            let arena = Arena::new(1 << 18).unwrap();
            let mut lent: Vec<AlignedBuffer> = Vec::new();
            for (number, (nbytes, give_back, which)) in requests.into_iter().enumerate() {
                if give_back && !lent.is_empty() {
                    let which = which % lent.len();
                    lent.swap_remove(which);
                } else if let Some(mut buffer) = arena.lend(nbytes) {
                    assert!(arena.contains(buffer.as_ptr()) && (buffer.as_ptr() as usize).is_multiple_of(4096));
                    buffer.fill(number as u8);
                    lent.push(buffer);
                }
                for buffer in &lent {
                    assert!(buffer.iter().all(|&byte| byte == buffer[0]), "overlap");
                }
            }
            drop(lent);
            assert!(arena.free.lock().unwrap().iter().eq(std::iter::once(&(0..1 << 18))));
            assert!(arena.lend((1 << 18) + 1).is_none() && arena.lend(0).is_none());
        }
    }
}
