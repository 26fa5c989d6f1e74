//! The tiers below the fastest, and where each part of a table is among them.
//!
//! A *part* is a table or a range of its rows with a home and tiers above that cache it. Byte-addressable tiers hold
//! rows, block devices hold home blocks. The copy of a row in the fastest tier that has one is the newest, and a clean
//! copy equals what a look below it would find.

use super::layout::{BlockKey, TableLayout, TableShape, split_row_key};
use super::log::{Locations, RowLog};
use super::unit_cache::UnitCache;
use crate::bits::BitSet;

/// What a tier keeps for the tiers below it.
#[derive(Debug)]
pub enum TierCache {
    /// Nothing: it is only a home.
    None,
    /// Rows, in one cache for each width class.
    Rows(Vec<UnitCache>),
    /// Home blocks.
    Blocks(Box<UnitCache>),
}

impl TierCache {
    fn caches(&self) -> &[UnitCache] {
        match self {
            Self::None => &[],
            Self::Rows(classes) => classes,
            Self::Blocks(cache) => std::slice::from_ref(&**cache),
        }
    }

    /// Rows or blocks held now.
    pub fn len(&self) -> usize {
        self.caches().iter().map(UnitCache::len).sum()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes on the tier's device.
    pub fn device_bytes(&self) -> u64 {
        self.caches().iter().map(UnitCache::device_bytes).sum()
    }

    fn metadata_bytes(&self) -> usize {
        self.caches().iter().map(UnitCache::metadata_bytes).sum()
    }
}

/// Where the rows of a part are at home.
#[derive(Debug)]
pub enum Home {
    /// Each row has its place.
    InPlace {
        /// The places.
        layout: TableLayout,
        /// Blocks that exist; one that does not is fresh by definition.
        present: BitSet,
    },
    /// Rows are where they were appended last.
    Log {
        /// Position in `LowerTiers::logs`.
        log: usize,
        /// Location of each row.
        locations: Locations,
        /// Whether the kernel may page them out.
        is_paged: bool,
    },
}

/// One part, as the tiers see it.
#[derive(Debug)]
pub struct PartTiers {
    /// Rows and their width.
    pub shape: TableShape,
    /// Width class.
    pub class: usize,
    /// Position of its home among the lower tiers.
    pub home: usize,
    /// The lower tiers above its home that cache it.
    pub cached_by: Vec<bool>,
    /// Whether a row is in one row-holding tier at a time, and blocks come into a tier with written rows only.
    pub exclusive: bool,
    /// Its rows at home.
    pub place: Home,
}

/// What happened between one part and one tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartCounts {
    /// Distinct rows that exist and were looked for here.
    pub probed_rows: u64,
    /// Of these, found here.
    pub hit_rows: u64,
    /// Bytes of these rows.
    pub asked_bytes: u64,
    /// Rows or blocks read from here.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Rows or blocks written here.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Bytes that the medium moved for both: whole granules.
    pub media_bytes: u64,
}

/// A log and who lives in it.
#[derive(Debug)]
pub struct LogHome {
    /// Position of its tier.
    pub tier: usize,
    /// Its accesses are counted for this part, one of those that live in it.
    pub first_part: usize,
    /// The log.
    pub log: RowLog,
}

impl PartCounts {
    /// Adds those of another part.
    pub fn add(&mut self, other: &Self) {
        self.probed_rows += other.probed_rows;
        self.hit_rows += other.hit_rows;
        self.asked_bytes += other.asked_bytes;
        self.reads += other.reads;
        self.read_bytes += other.read_bytes;
        self.writes += other.writes;
        self.written_bytes += other.written_bytes;
        self.media_bytes += other.media_bytes;
    }
}

/// The tiers below the fastest.
#[derive(Debug)]
pub struct LowerTiers {
    /// Caches from fast to slow; the slowest tier has none.
    pub caches: Vec<TierCache>,
    /// Least bytes that the medium of each tier moves.
    pub granule_bytes: Vec<u64>,
    /// Tiers whose backend moves single bytes as easily as blocks.
    pub moves_bytes: Vec<bool>,
    /// Homes and routes.
    pub parts: Vec<PartTiers>,
    /// Log-structured homes.
    pub logs: Vec<LogHome>,
    /// By part, then by tier.
    pub counts: Vec<PartCounts>,
    /// Row images sent down from memory, by part.
    pub rows_written_back: Vec<u64>,
    /// Blocks read because a row image replaces a part of them, by part.
    pub read_modify_writes: Vec<u64>,
}

/// A home block: where, how large, and whether it begins with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockPlace {
    pub(super) tier: usize,
    pub(super) offset: u64,
    pub(super) nbytes: usize,
    pub(super) has_header: bool,
}

impl LowerTiers {
    /// Number of tiers.
    pub fn len(&self) -> usize {
        self.caches.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.caches.is_empty()
    }

    /// Whether a row exists at home. It may exist in a tier that holds rows all the same.
    #[inline]
    pub(super) fn is_at_home(&self, part: usize, row: u64) -> bool {
        match &self.parts[part].place {
            Home::InPlace { layout, present } => present.contains(layout.place(row).0),
            Home::Log { locations, .. } => locations.get(row).is_some(),
        }
    }

    /// The home block of a row that exists, and its offset in it.
    pub(super) fn block_of(&self, part: usize, row: u64) -> (BlockKey, usize) {
        match &self.parts[part].place {
            Home::InPlace { layout, .. } => {
                let (block, offset) = layout.place(row);
                (BlockKey::new(part, block), offset)
            }
            Home::Log { log, locations, .. } => self.logs[*log].log.place(locations.get(row).expect("the row exists")),
        }
    }

    pub(super) fn place_of(&self, key: BlockKey) -> BlockPlace {
        let (number, block) = key.parts();
        if let Some(LogHome { tier, log, .. }) = number.checked_sub(self.parts.len()).map(|log| &self.logs[log]) {
            let (offset, nbytes) = (log.block_offset(block), log.block_bytes() as usize);
            return BlockPlace { tier: *tier, offset, nbytes, has_header: true };
        }
        let part = &self.parts[number];
        let Home::InPlace { layout, .. } = &part.place else { unreachable!("the block of a part that has blocks") };
        BlockPlace {
            tier: part.home,
            offset: layout.block_offset(block),
            nbytes: layout.block_bytes as usize,
            has_header: layout.header_bytes > 0,
        }
    }

    /// Whether a tier above its home caches the block.
    pub(super) fn is_cached_by(&self, key: BlockKey, tier: usize) -> bool {
        let number = key.parts().0;
        match number.checked_sub(self.parts.len()) {
            Some(log) => self.logs[log].log.cached_by()[tier],
            None => self.parts[number].cached_by[tier],
        }
    }

    /// The part that a block is counted for where no row was asked for.
    pub(super) fn part_of(&self, key: BlockKey) -> usize {
        let number = key.parts().0;
        number.checked_sub(self.parts.len()).map_or(number, |log| self.logs[log].first_part)
    }

    pub(super) fn counts_of(&mut self, part: usize, tier: usize) -> &mut PartCounts {
        let tiers = self.caches.len();
        &mut self.counts[part * tiers + tier]
    }

    /// Bytes of memory for indices, presence and locations.
    pub fn metadata_bytes(&self) -> usize {
        let caches: usize = self.caches.iter().map(TierCache::metadata_bytes).sum();
        let places = self.parts.iter().map(|part| match &part.place {
            Home::InPlace { present, .. } => present.metadata_bytes(),
            Home::Log { is_paged: true, .. } => 0,
            Home::Log { locations, .. } => locations.nbytes(),
        });
        caches + places.sum::<usize>() + self.logs.iter().map(|home| home.log.metadata_bytes()).sum::<usize>()
    }

    /// Bytes of locations that the kernel may page out.
    pub fn paged_bytes(&self) -> usize {
        let paged = |part: &PartTiers| match &part.place {
            Home::Log { is_paged: true, locations, .. } => locations.nbytes(),
            _ => 0,
        };
        self.parts.iter().map(paged).sum()
    }

    /// Gives a row of a log a new location and forgets the one before. `None` if the log is full.
    pub(super) fn append(&mut self, key: u64) -> Option<(BlockKey, usize, bool, usize)> {
        let (part, row) = split_row_key(key);
        let Home::Log { log, locations, .. } = &mut self.parts[part].place else { return None };
        let log = &mut self.logs[*log].log;
        let (location, is_new, within) = log.append()?;
        if let Some(before) = locations.replace(row, location) {
            log.forget(before);
        }
        let (block, offset) = log.place(location);
        Some((block, offset, is_new, within))
    }

    /// Whether a row lives at a location of its log. The key may be anything that a device gave back.
    pub fn lives_at(&self, key: u64, location: u32) -> bool {
        let (part, row) = split_row_key(key);
        if self.parts.get(part).is_none_or(|part| row >= part.shape.rows) {
            return false;
        }
        match self.parts.get(part).map(|part| &part.place) {
            Some(Home::Log { locations, .. }) => locations.get(row) == Some(location),
            _ => false,
        }
    }
}
