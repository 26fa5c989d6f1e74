//! The policy that does best on this stream, found by small copies of the cache.
//!
//! Each candidate runs in a *shadow*: a cache of at least `SHADOW_ROWS` rows that sees only the keys whose hash
//! is below a threshold, so that a share of the keys meets the same share of the rows (miniature simulation:
//! Waldspurger, Saemundson, Ahmad, Park, USENIX ATC 2017). All shadows see the same keys, so their differences
//! are known far better than their levels. Decisions fall at fixed numbers of accesses: runs repeat.

use super::Policy;
use super::{AnyPolicy, PolicyKind};
use crate::cache::row_cache::RowCache;
use crate::rng;

/// Rows of a shadow; the whole cache if that is smaller.
const SHADOW_ROWS: usize = 1_000;
/// A decision falls after as many accesses as the cache has rows, and after this many at the least.
const PERIOD_ACCESSES_MIN: u64 = 8_192;
/// What happened one period ago counts 7/8 of what happened now.
const MEMORY: f64 = 0.875;
/// Another policy must have been better by this much of the accesses.
const LEAD: f64 = 0.002;
const SALT: u64 = 0xd1b5_4a32_d192_ed03;
/// Recency, frequency with a ghost, and frequency with quick demotion. Others win by little where they win
/// (clock over lru), or cannot take over a cache whose counts they do not know (lfu). The first one begins.
const CANDIDATES: [PolicyKind; 3] = [PolicyKind::S3Fifo, PolicyKind::Lru, PolicyKind::Sieve];

/// One candidate at work, all of them in shadows.
#[derive(Debug, Clone)]
pub struct Auto {
    slots: usize,
    rows: usize,
    at_work: usize,
    main: AnyPolicy,
    shadows: Vec<Shadow>,
    sample_below: u64,
    accesses: u64,
    sampled: u64,
    sampled_score: f64,
    period_accesses: u64,
    /// Another policy that is to take over at the next eviction.
    next: Option<usize>,
}

#[derive(Debug, Clone)]
struct Shadow {
    cache: RowCache<AnyPolicy>,
    hits: u64,
    score: f64,
}

fn candidate(kind: PolicyKind, slots: usize, rows: usize) -> AnyPolicy {
    AnyPolicy::new(kind, slots, rows, 0).expect("no candidate knows the future")
}

impl Auto {
    /// For at least one row. Begins as s3fifo, which takes longest to recover from the rows of another.
    pub fn new(rows: usize) -> Self {
        Self::with_slots(rows, rows)
    }

    /// For `rows` attached rows at a time, in `slots` slots of which others are in flight.
    pub fn with_slots(slots: usize, rows: usize) -> Self {
        let shadow_rows = rows.clamp(1, SHADOW_ROWS);
        let shadows = CANDIDATES.iter().map(|&kind| Shadow {
            cache: RowCache::new(shadow_rows, candidate(kind, shadow_rows, shadow_rows))
                .expect("a capacity that fits, divided"),
            hits: 0,
            score: 0.0,
        });
        let sample_below =
            if shadow_rows >= rows { u64::MAX } else { (((shadow_rows as u128) << 64) / rows as u128) as u64 };
        Self {
            slots,
            rows,
            at_work: 0,
            main: candidate(CANDIDATES[0], slots, rows),
            shadows: shadows.collect(),
            sample_below,
            accesses: 0,
            sampled: 0,
            sampled_score: 0.0,
            period_accesses: PERIOD_ACCESSES_MIN.max(rows as u64),
            next: None,
        }
    }

    /// The candidate at work.
    pub fn at_work(&self) -> PolicyKind {
        CANDIDATES[self.at_work]
    }

    /// Bytes of the shadows: the same for every cache of at least 1,000 rows, and apart from its metadata.
    pub fn shadow_bytes(&self) -> usize {
        self.shadows.iter().map(|shadow| shadow.cache.metadata_bytes()).sum()
    }

    #[inline]
    fn observe(&mut self, key: u64) {
        if rng::mix(key ^ SALT) <= self.sample_below {
            self.sampled += 1;
            for shadow in &mut self.shadows {
                shadow.hits += u64::from(shadow.cache.access(key).is_hit());
            }
        }
        self.accesses += 1;
        if self.accesses.is_multiple_of(self.period_accesses) {
            self.decide();
        }
    }

    fn decide(&mut self) {
        self.sampled_score = self.sampled_score * MEMORY + self.sampled as f64;
        self.sampled = 0;
        for shadow in &mut self.shadows {
            shadow.score = shadow.score * MEMORY + shadow.hits as f64;
            shadow.hits = 0;
        }
        let score = |candidate: &usize| self.shadows[*candidate].score;
        let best = (0..self.shadows.len()).max_by(|a, b| score(a).total_cmp(&score(b)).then(b.cmp(a)));
        let lead = self.sampled_score * LEAD;
        self.next = best.filter(|best| score(best) > score(&self.at_work) + lead);
    }

    /// The rows stay; the new policy starts from the order of the old one.
    fn take_over(&mut self, next: usize, keys: &[u64]) {
        let mut policy = candidate(CANDIDATES[next], self.slots, self.rows);
        policy.adopt(&self.main.coldest_first(), keys);
        self.main = policy;
        self.at_work = next;
    }
}

impl Policy for Auto {
    #[inline]
    fn admit(&mut self, slot: u32, key: u64) {
        self.main.admit(slot, key);
        self.observe(key);
    }

    #[inline]
    fn hit(&mut self, slot: u32, key: u64) {
        self.main.hit(slot, key);
        self.observe(key);
    }

    #[inline]
    fn evict(&mut self, keys: &[u64]) -> u32 {
        if let Some(next) = self.next.take() {
            self.take_over(next, keys);
        }
        self.main.evict(keys)
    }

    #[inline]
    fn detach(&mut self, slot: u32) {
        self.main.detach(slot);
    }

    #[inline]
    fn attach(&mut self, slot: u32) {
        self.main.attach(slot);
    }

    #[inline]
    fn is_detached(&self, slot: u32) -> bool {
        self.main.is_detached(slot)
    }

    fn forget(&mut self, slot: u32) {
        self.main.forget(slot);
    }

    fn coldest_first(&self) -> Vec<u32> {
        self.main.coldest_first()
    }

    fn metadata_bytes(&self) -> usize {
        self.main.metadata_bytes()
    }
}
