//! Doubly linked lists of slots. Several lists may share one array of links: a slot is in one list at a time.

pub(super) const NIL: u32 = u32::MAX;
/// In `newer`: the slot is in no list.
const OUT: u32 = u32::MAX - 1;

/// The neighbours of each slot in the list that it is in.
#[derive(Debug, Clone)]
pub(super) struct Links {
    links: Vec<Link>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    newer: u32,
    older: u32,
}

/// The two ends of a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) newest: u32,
    pub(super) oldest: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self { newest: NIL, oldest: NIL };

    pub(super) fn is_empty(self) -> bool {
        self.oldest == NIL
    }
}

impl Links {
    pub(super) fn new(capacity: usize) -> Self {
        Self { links: vec![Link { newer: OUT, older: NIL }; capacity] }
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        self.links.len() * size_of::<Link>()
    }

    /// Whether the slot is in no list.
    #[inline]
    pub(super) fn is_out(&self, slot: u32) -> bool {
        self.links[slot as usize].newer == OUT
    }

    /// The next newer slot of the list, or `NIL`.
    #[inline]
    pub(super) fn newer(&self, slot: u32) -> u32 {
        self.links[slot as usize].newer
    }

    #[inline]
    pub(super) fn push_newest(&mut self, list: &mut List, slot: u32) {
        self.links[slot as usize] = Link { newer: NIL, older: list.newest };
        if list.newest == NIL {
            list.oldest = slot;
        } else {
            self.links[list.newest as usize].newer = slot;
        }
        list.newest = slot;
    }

    #[inline]
    pub(super) fn unlink(&mut self, list: &mut List, slot: u32) {
        let Link { newer, older } = self.links[slot as usize];
        if newer == NIL {
            list.newest = older;
        } else {
            self.links[newer as usize].older = older;
        }
        if older == NIL {
            list.oldest = newer;
        } else {
            self.links[older as usize].newer = newer;
        }
        self.links[slot as usize].newer = OUT;
    }

    /// Takes the oldest slot out. The list is not empty.
    #[inline]
    pub(super) fn pop_oldest(&mut self, list: &mut List) -> u32 {
        let slot = list.oldest;
        self.unlink(list, slot);
        slot
    }

    /// The slots of a list, the oldest first.
    pub(super) fn iter(&self, list: List) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors((list.oldest != NIL).then_some(list.oldest), |&slot| {
            let newer = self.newer(slot);
            (newer != NIL).then_some(newer)
        })
    }
}
