//! The way down in a plan: rows and blocks into the tiers that cache them, what has to leave for them, and home.

use super::layout::{BlockKey, row_key, split_row_key};
use super::log::RowLog;
use super::lower::{Home, TierCache};
use super::plan::{FramePatch, ImageSource, Piece, PlanBuilder, Source, Unit};
use super::unit_cache::Evicted;

impl PlanBuilder<'_> {
    /// Fills a row into the tiers above `found_at` that hold rows and cache it inclusively.
    pub(super) fn fill_rows(&mut self, part: usize, row: u64, found_at: usize, from: (usize, usize)) {
        if self.tiers.parts[part].exclusive {
            return;
        }
        for tier in (0..found_at).rev() {
            if self.tiers.parts[part].cached_by[tier] && matches!(self.tiers.caches[tier], TierCache::Rows(_)) {
                self.put_row(tier, part, row, from, false);
            }
        }
    }

    /// Puts a row into a tier that holds rows (it may be there already); who has to leave goes down.
    fn put_row(&mut self, tier: usize, part: usize, row: u64, (frame, from): (usize, usize), is_dirty: bool) {
        let key = row_key(part, row);
        let class = self.tiers.parts[part].class;
        let TierCache::Rows(classes) = &mut self.tiers.caches[tier] else { unreachable!("a tier that holds rows") };
        let cache = &mut classes[class];
        let (offset, evicted) = match cache.touch(key) {
            Some(offset) => (offset, None),
            None => cache.insert(key),
        };
        if is_dirty {
            cache.mark_dirty(key);
        }
        if let Some(evicted) = evicted {
            self.lower_row(tier, evicted);
        }
        let nbytes = self.tiers.parts[part].shape.row_bytes();
        self.write_to(frame, Piece { tier, offset, from, nbytes }, true);
    }

    /// A row left a tier that holds rows: if it is newer than below, or has no copy there, it goes down.
    fn lower_row(&mut self, tier: usize, evicted: Evicted) {
        let (part, row) = split_row_key(evicted.key);
        if evicted.dirty || self.tiers.parts[part].exclusive {
            let lower_rows = (tier + 1..self.tiers.parts[part].home).any(|below| {
                self.tiers.parts[part].cached_by[below] && matches!(self.tiers.caches[below], TierCache::Rows(_))
            });
            if evicted.dirty || lower_rows {
                let (frame, from) = self.slot_frame(part, evicted.key, tier, evicted.offset);
                self.descend(part, row, tier + 1, ImageSource::Frame(frame, from), evicted.dirty);
            }
        }
        self.unwrite(tier, evicted.offset);
    }

    /// Sends a row image to the first tier from `from` on that caches it, or home.
    pub(super) fn descend(&mut self, part: usize, row: u64, from: usize, image: ImageSource, is_dirty: bool) {
        for tier in from..self.tiers.parts[part].home {
            if !self.tiers.parts[part].cached_by[tier] {
                continue;
            }
            match &self.tiers.caches[tier] {
                TierCache::None => {}
                TierCache::Rows(_) => {
                    let place = self.image_frame(part, row, image);
                    self.put_row(tier, part, row, place, is_dirty);
                    return;
                }
                TierCache::Blocks(_) => {
                    if is_dirty {
                        let (frame, offset) = self.home_block(part, row);
                        self.patch(part, frame, offset, image);
                        self.fill_block(tier, frame, true);
                    }
                    return;
                }
            }
        }
        if is_dirty {
            let (frame, offset) = self.home_block(part, row);
            self.patch(part, frame, offset, image);
            self.send_home(frame);
        }
    }

    /// A frame that holds the image, and the image's offset in it.
    fn image_frame(&mut self, part: usize, row: u64, image: ImageSource) -> (usize, usize) {
        if let ImageSource::Frame(frame, offset) = image {
            return (frame, offset);
        }
        let nbytes = self.tiers.parts[part].shape.row_bytes();
        let unit = Unit::Row(row_key(part, row));
        let frame = self.push(unit, part, nbytes, Source::Empty, false);
        self.patch(part, frame, 0, image);
        (frame, 0)
    }

    pub(super) fn patch(&mut self, part: usize, frame: usize, offset: usize, from: ImageSource) {
        let nbytes = self.tiers.parts[part].shape.row_bytes();
        self.patches.push(FramePatch { frame, offset, nbytes, from });
    }

    /// The block that is to take a row, in this plan, and the row's offset in it.
    pub(super) fn home_block(&mut self, part: usize, row: u64) -> (usize, usize) {
        if matches!(self.tiers.parts[part].place, Home::Log { .. }) {
            return self.append(part, row);
        }
        let (key, offset) = self.tiers.block_of(part, row);
        if let Some(&frame) = self.blocks.get(&key) {
            return (frame, offset);
        }
        let Home::InPlace { layout, present } = &mut self.tiers.parts[part].place else { unreachable!("not a log") };
        let (is_fresh, is_whole) = (present.insert(key.parts().1), layout.header_bytes == 0);
        let source = if is_whole {
            Source::Empty
        } else if is_fresh {
            Source::Fresh
        } else {
            self.tiers.read_modify_writes[part] += u64::from(self.is_counted);
            self.locate(key).0
        };
        (self.new_block(key, source, part), offset)
    }

    fn append(&mut self, part: usize, row: u64) -> (usize, usize) {
        let key = row_key(part, row);
        let (block, offset, is_new, within) =
            self.tiers.append(key).expect("room was made in the log before the plan was begun");
        let frame = if is_new { self.new_block(block, Source::Empty, part) } else { self.blocks[&block] };
        let image = self.images.len();
        self.images.extend_from_slice(&key.to_le_bytes());
        self.patches.push(FramePatch {
            frame,
            offset: RowLog::key_offset(within),
            nbytes: size_of::<u64>(),
            from: ImageSource::Image(image),
        });
        (frame, offset)
    }

    /// Puts a block into a tier that holds blocks (it may be there already); who has to leave goes down.
    pub(super) fn fill_block(&mut self, tier: usize, frame: usize, is_dirty: bool) {
        let Unit::Block(key) = self.frames[frame].unit else { unreachable!("only blocks go into a tier of blocks") };
        let TierCache::Blocks(cache) = &mut self.tiers.caches[tier] else { unreachable!("a tier that holds blocks") };
        let (offset, evicted) = match cache.touch(key.0) {
            Some(offset) => (offset, None),
            None => cache.insert(key.0),
        };
        if is_dirty {
            cache.mark_dirty(key.0);
        }
        if let Some(evicted) = evicted {
            self.lower_block(tier, evicted);
        }
        let nbytes = self.frames[frame].nbytes;
        self.write_to(frame, Piece { tier, offset, from: 0, nbytes }, true);
    }

    fn lower_block(&mut self, tier: usize, evicted: Evicted) {
        let key = BlockKey(evicted.key);
        self.unwrite(tier, evicted.offset);
        if !evicted.dirty {
            return;
        }
        let frame = if let Some(&frame) = self.blocks.get(&key) {
            frame
        } else {
            // A faster tier may hold a newer copy of the block, and it has the last word.
            let newer = (0..tier).find_map(|above| match &self.tiers.caches[above] {
                TierCache::Blocks(cache) => cache.peek(key.0).map(|offset| (above, offset)),
                _ => None,
            });
            let (tier, offset) = newer.unwrap_or((tier, evicted.offset));
            let part = self.tiers.part_of(key);
            self.new_block(key, Source::Tier { tier, offset }, part)
        };
        let below = (tier + 1..self.tiers.place_of(key).tier).find(|&below| {
            self.tiers.is_cached_by(key, below) && matches!(self.tiers.caches[below], TierCache::Blocks(_))
        });
        match below {
            Some(below) => self.fill_block(below, frame, true),
            None => self.send_home(frame),
        }
    }

    pub(super) fn send_home(&mut self, frame: usize) {
        let Unit::Block(key) = self.frames[frame].unit else { unreachable!("only blocks go home") };
        let place = self.tiers.place_of(key);
        let piece = Piece { tier: place.tier, offset: place.offset, from: 0, nbytes: place.nbytes };
        self.write_to(frame, piece, false);
    }
}
