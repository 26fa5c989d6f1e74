//! Policies by name, and one of them chosen at run time.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::{Auto, Clock, Lfu, Lookahead, Lru, Policy, Random, S3Fifo, Sieve};
use crate::error::{Error, ErrorKind, Result};

/// A policy by name. `min` is for replay only: it knows the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    /// [`Lru`]
    Lru,
    /// [`Lfu`]
    Lfu,
    /// [`super::Clock`]
    Clock,
    /// [`S3Fifo`]
    S3Fifo,
    /// [`Sieve`]
    Sieve,
    /// [`super::Lookahead`]
    Lookahead,
    /// [`super::Auto`]
    Auto,
    /// [`super::Random`]: the floor.
    Random,
    /// Belady's MIN: the ceiling.
    Min,
}

impl PolicyKind {
    /// All of them with their names.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Lru, "lru"),
        (Self::Lfu, "lfu"),
        (Self::Clock, "clock"),
        (Self::S3Fifo, "s3fifo"),
        (Self::Sieve, "sieve"),
        (Self::Lookahead, "lookahead"),
        (Self::Auto, "auto"),
        (Self::Random, "random"),
        (Self::Min, "min"),
    ];
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for PolicyKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|&(kind, _)| kind).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|&(_, name)| name).collect();
            Error::new(ErrorKind::Config, format!("\"{text}\" is not a policy; choose of {}", names.join(", ")))
        })
    }
}

/// Any policy that works without knowing the future, chosen at run time.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each variant is the policy of its name")]
pub enum AnyPolicy {
    Lru(Lru),
    Lfu(Lfu),
    Clock(Clock),
    S3Fifo(S3Fifo),
    Sieve(Sieve),
    Lookahead(Lookahead),
    Auto(Box<Auto>),
    Random(Random),
}

impl AnyPolicy {
    /// For `rows` attached rows at a time in `slots` slots.
    ///
    /// # Errors
    ///
    /// `Config` for `min`, which would have to know the future.
    pub fn new(kind: PolicyKind, slots: usize, rows: usize, seed: u64) -> Result<Self> {
        Ok(match kind {
            PolicyKind::Lru => Self::Lru(Lru::new(slots)),
            PolicyKind::Lfu => Self::Lfu(Lfu::new(slots)),
            PolicyKind::Clock => Self::Clock(Clock::new(slots)),
            PolicyKind::S3Fifo => Self::S3Fifo(S3Fifo::with_slots(slots, rows)),
            PolicyKind::Sieve => Self::Sieve(Sieve::new(slots)),
            PolicyKind::Lookahead => Self::Lookahead(Lookahead::new(slots)),
            PolicyKind::Auto => Self::Auto(Box::new(Auto::with_slots(slots, rows))),
            PolicyKind::Random => Self::Random(Random::new(slots, seed)),
            PolicyKind::Min => {
                return Err(Error::new(
                    ErrorKind::Config,
                    "the policy \"min\" knows the future and is for replays only; use lookahead in a store",
                ));
            }
        })
    }
}

macro_rules! each {
    ($any:expr, $policy:ident => $call:expr) => {
        match $any {
            AnyPolicy::Lru($policy) => $call,
            AnyPolicy::Lfu($policy) => $call,
            AnyPolicy::Clock($policy) => $call,
            AnyPolicy::S3Fifo($policy) => $call,
            AnyPolicy::Sieve($policy) => $call,
            AnyPolicy::Lookahead($policy) => $call,
            AnyPolicy::Auto($policy) => $call,
            AnyPolicy::Random($policy) => $call,
        }
    };
}

impl Policy for AnyPolicy {
    #[inline]
    fn admit(&mut self, slot: u32, key: u64) {
        each!(self, policy => policy.admit(slot, key));
    }

    #[inline]
    fn hit(&mut self, slot: u32, key: u64) {
        each!(self, policy => policy.hit(slot, key));
    }

    #[inline]
    fn evict(&mut self, keys: &[u64]) -> u32 {
        each!(self, policy => policy.evict(keys))
    }

    #[inline]
    fn detach(&mut self, slot: u32) {
        each!(self, policy => policy.detach(slot));
    }

    #[inline]
    fn attach(&mut self, slot: u32) {
        each!(self, policy => policy.attach(slot));
    }

    #[inline]
    fn is_detached(&self, slot: u32) -> bool {
        each!(self, policy => policy.is_detached(slot))
    }

    fn forget(&mut self, slot: u32) {
        each!(self, policy => policy.forget(slot));
    }

    fn announce(&mut self, keys: &[u64], slot_of: impl Fn(u64) -> Option<u32>) -> Result<()> {
        each!(self, policy => policy.announce(keys, slot_of))
    }

    fn begin_batch(&mut self, slot_of: impl Fn(u64) -> Option<u32>) {
        each!(self, policy => policy.begin_batch(slot_of));
    }

    fn adopt(&mut self, coldest_first: &[u32], keys: &[u64]) {
        each!(self, policy => policy.adopt(coldest_first, keys));
    }

    fn coldest_first(&self) -> Vec<u32> {
        each!(self, policy => policy.coldest_first())
    }

    fn metadata_bytes(&self) -> usize {
        each!(self, policy => policy.metadata_bytes())
    }
}
