//! The baseline that maps the tables into memory: pages of the kernel, least recently used first out.

use crate::cache::{Access, Lru, RowCache};
use crate::error::Result;

use super::layout::Span;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// Which pages are in memory.
#[derive(Debug, Clone)]
pub(super) struct MappedPages {
    pages: RowCache<Lru>,
    touched: u64,
    missed: u64,
}

impl MappedPages {
    /// So many bytes of pages; what the kernel spends on each besides is not counted against it.
    pub(super) fn new(memory_bytes: u64) -> Result<Self> {
        let capacity = (memory_bytes / PAGE_BYTES).max(1) as usize;
        Ok(Self { pages: RowCache::new(capacity, Lru::new(capacity))?, touched: 0, missed: 0 })
    }

    /// The pages under a range of bytes.
    pub(super) fn pages(offset: u64, nbytes: u64) -> impl Iterator<Item = u64> {
        offset / PAGE_BYTES..=(offset + nbytes - 1) / PAGE_BYTES
    }

    /// The bytes of a page.
    pub(super) fn span(page: u64) -> Span {
        Span { offset: page * PAGE_BYTES, nbytes: PAGE_BYTES }
    }

    /// Whether a page is there; it is from now on.
    pub(super) fn touch(&mut self, page: u64) -> bool {
        let is_there = matches!(self.pages.access(page), Access::Hit { .. });
        self.touched += 1;
        self.missed += u64::from(!is_there);
        is_there
    }

    /// Pages touched, and those that were not there.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.touched, self.missed)
    }

    pub(super) fn reset_counts(&mut self) {
        (self.touched, self.missed) = (0, 0);
    }

    /// Forgets all pages.
    pub(super) fn clear(&mut self) {
        let capacity = self.pages.capacity();
        if let Ok(pages) = RowCache::new(capacity, Lru::new(capacity)) {
            self.pages = pages;
        }
    }
}
