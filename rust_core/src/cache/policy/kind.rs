//! Policies by name, and one of them chosen at run time.

use std::fmt;
use std::str::FromStr;

use super::{Lru, Policy, S3Fifo, Sieve};
use crate::error::{Error, ErrorKind};

/// A policy by name. `min` is for replay only: it knows the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|&(kind, _)| kind).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|&(_, name)| name).collect();
            Error::new(ErrorKind::Config, format!("\"{text}\" is not a policy; choose of {}", names.join(", ")))
        })
    }
}

/// What `auto` chooses from: recency, frequency with a ghost, and frequency with quick demotion. Others win by
/// little where they win (clock over lru), or cannot take over a cache whose counts they do not know (lfu).
#[derive(Debug)]
pub(super) enum Candidate {
    Lru(Lru),
    S3Fifo(S3Fifo),
    Sieve(Sieve),
}

impl Candidate {
    pub(super) const KINDS: [PolicyKind; 3] = [PolicyKind::S3Fifo, PolicyKind::Lru, PolicyKind::Sieve];

    /// One of [`Self::KINDS`].
    pub(super) fn new(kind: PolicyKind, capacity: usize) -> Self {
        match kind {
            PolicyKind::S3Fifo => Self::S3Fifo(S3Fifo::new(capacity)),
            PolicyKind::Sieve => Self::Sieve(Sieve::new(capacity)),
            _ => Self::Lru(Lru::new(capacity)),
        }
    }
}

macro_rules! each {
    ($candidate:expr, $policy:ident => $call:expr) => {
        match $candidate {
            Candidate::Lru($policy) => $call,
            Candidate::S3Fifo($policy) => $call,
            Candidate::Sieve($policy) => $call,
        }
    };
}

impl Policy for Candidate {
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
