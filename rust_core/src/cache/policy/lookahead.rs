//! The row whose next use is farthest away leaves, as far as the announced batches tell.
//!
//! A training run knows its next batches: they are announced, and each cached row is listed under the batch
//! that uses it next. A row that no announced batch uses leaves first, the least recently used of them in
//! front; then the rows of the farthest batch. With every batch announced this is Belady's MIN, batch by batch.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use super::Policy;
use crate::cache::list::{Links, List};
use crate::error::{Error, ErrorKind, Result};
use crate::rng::MixHasher;

/// Batches that may be announced and not yet begun.
pub const WINDOW_BATCHES_MAX: usize = 254;

const RING: u32 = WINDOW_BATCHES_MAX as u32 + 1;
/// The list of the rows that no announced batch uses.
const UNKNOWN: u8 = u8::MAX;

/// Cached rows by the batch of their next use, and the window of announced batches.
#[derive(Debug, Clone)]
pub struct Lookahead {
    links: Links,
    list_of: Vec<u8>,
    lists: Box<[List; RING as usize + 1]>,
    window: Window,
}

/// Which announced batches use which keys. Its memory is that of the announced ids, not of the cache.
#[derive(Debug, Clone, Default)]
struct Window {
    mentions: VecDeque<Mention>,
    /// Number of the first entry of `mentions`, counted from the first announcement on.
    first: u64,
    /// The next and the last mention of each key.
    keys: HashMap<u64, (u64, u64), BuildHasherDefault<MixHasher>>,
    /// The batch that is running; the first announced one is 1.
    running: u32,
    announced: u32,
}

#[derive(Debug, Clone)]
struct Mention {
    key: u64,
    batch: u32,
    /// How many mentions later this key is mentioned again; 0: it is not.
    next: u32,
}

impl Window {
    /// Whether this is the first announced batch that uses the key.
    fn add(&mut self, key: u64) -> bool {
        let number = self.first + self.mentions.len() as u64;
        let batch = self.announced;
        let mut is_new = true;
        match self.keys.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert((number, number));
            }
            Entry::Occupied(mut entry) => {
                let (_, last) = entry.get_mut();
                let previous = &mut self.mentions[(*last - self.first) as usize];
                if previous.batch == batch {
                    return false;
                }
                previous.next = (number - *last) as u32;
                *last = number;
                is_new = false;
            }
        }
        self.mentions.push_back(Mention { key, batch, next: 0 });
        is_new
    }

    /// The next batch that uses the key, after the running one if the key is used now.
    fn use_now(&mut self, key: u64) -> Option<u32> {
        let Entry::Occupied(mut entry) = self.keys.entry(key) else { return None };
        let first = entry.get().0;
        let mention = &self.mentions[(first - self.first) as usize];
        if mention.batch != self.running {
            return Some(mention.batch);
        }
        if mention.next == 0 {
            entry.remove();
            return None;
        }
        let next = first + u64::from(mention.next);
        entry.get_mut().0 = next;
        Some(self.mentions[(next - self.first) as usize].batch)
    }

    /// The key of the oldest mention, if that is of the running batch, and whether the batch never used it.
    fn oldest_of_running(&self) -> Option<(u64, bool)> {
        let mention = self.mentions.front().filter(|mention| mention.batch == self.running)?;
        let unused = self.keys.get(&mention.key).is_some_and(|&(first, _)| first == self.first);
        Some((mention.key, unused))
    }
}

impl Lookahead {
    /// For `capacity` slots.
    pub fn new(capacity: usize) -> Self {
        Self {
            links: Links::new(capacity),
            list_of: vec![UNKNOWN; capacity],
            lists: Box::new([List::EMPTY; RING as usize + 1]),
            window: Window::default(),
        }
    }

    fn list_of_batch(batch: Option<u32>) -> u8 {
        batch.map_or(UNKNOWN, |batch| (batch % RING) as u8)
    }

    #[inline]
    fn relist(&mut self, slot: u32, batch: Option<u32>) {
        if self.links.is_out(slot) {
            // In flight: it is listed when it is attached.
            self.list_of[slot as usize] = Self::list_of_batch(batch);
            return;
        }
        self.links.unlink(&mut self.lists[usize::from(self.list_of[slot as usize])], slot);
        self.list(slot, batch);
    }

    #[inline]
    fn list(&mut self, slot: u32, batch: Option<u32>) {
        let list = Self::list_of_batch(batch);
        self.list_of[slot as usize] = list;
        self.links.push_newest(&mut self.lists[usize::from(list)], slot);
    }
}

impl Policy for Lookahead {
    #[inline]
    fn admit(&mut self, slot: u32, key: u64) {
        let next = self.window.use_now(key);
        self.list(slot, next);
    }

    #[inline]
    fn hit(&mut self, slot: u32, key: u64) {
        let next = self.window.use_now(key);
        self.relist(slot, next);
    }

    #[inline]
    fn evict(&mut self, _keys: &[u64]) -> u32 {
        if !self.lists[usize::from(UNKNOWN)].is_empty() {
            return self.links.pop_oldest(&mut self.lists[usize::from(UNKNOWN)]);
        }
        for batch in (self.window.running..=self.window.announced).rev() {
            let list = usize::from(Self::list_of_batch(Some(batch)));
            if !self.lists[list].is_empty() {
                return self.links.pop_oldest(&mut self.lists[list]);
            }
        }
        unreachable!("an admitted slot is in one of the lists");
    }

    #[inline]
    fn detach(&mut self, slot: u32) {
        if !self.links.is_out(slot) {
            self.links.unlink(&mut self.lists[usize::from(self.list_of[slot as usize])], slot);
        }
    }

    #[inline]
    fn attach(&mut self, slot: u32) {
        self.links.push_newest(&mut self.lists[usize::from(self.list_of[slot as usize])], slot);
    }

    #[inline]
    fn is_detached(&self, slot: u32) -> bool {
        self.links.is_out(slot)
    }

    fn forget(&mut self, slot: u32) {
        self.detach(slot);
    }

    fn announce(&mut self, keys: &[u64], slot_of: impl Fn(u64) -> Option<u32>) -> Result<()> {
        if self.window.announced - self.window.running >= WINDOW_BATCHES_MAX as u32 {
            return Err(Error::new(
                ErrorKind::Capacity,
                format!("{WINDOW_BATCHES_MAX} batches are announced and not yet begun; begin one before the next"),
            ));
        }
        self.window.announced += 1;
        for &key in keys {
            if self.window.add(key)
                && let Some(slot) = slot_of(key)
            {
                self.relist(slot, Some(self.window.announced));
            }
        }
        Ok(())
    }

    fn begin_batch(&mut self, slot_of: impl Fn(u64) -> Option<u32>) {
        // What the batch that ends announced and never used is listed under its next use.
        while let Some((key, unused)) = self.window.oldest_of_running() {
            if unused {
                let batch = self.window.use_now(key);
                if let Some(slot) = slot_of(key) {
                    self.relist(slot, batch);
                }
            }
            self.window.mentions.pop_front();
            self.window.first += 1;
        }
        self.window.running = (self.window.running + 1).min(self.window.announced);
    }

    /// Those that no announced batch uses, then by next use, the farthest first.
    fn coldest_first(&self) -> Vec<u32> {
        let batches = (self.window.running..=self.window.announced).rev();
        std::iter::once(UNKNOWN)
            .chain(batches.map(|batch| Self::list_of_batch(Some(batch))))
            .flat_map(|list| self.links.iter(self.lists[usize::from(list)]))
            .collect()
    }

    fn metadata_bytes(&self) -> usize {
        self.links.metadata_bytes() + self.list_of.len() + size_of_val(&*self.lists)
    }
}
