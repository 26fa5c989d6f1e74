//! A stream of tokens for n-gram tables: many tokens follow from the one before.

use super::config::Skew;
use super::popularity::Popularity;
use super::zipf::unit;
use crate::rng;

/// Followers that a token has; which of them comes is drawn.
const FOLLOWERS: u64 = 4;

/// Texts of tokens. All tables of a trace read the same text.
#[derive(Debug)]
pub(super) struct TokenLaw {
    popularity: Popularity,
    vocabulary: u64,
    predictable: f64,
    key: u64,
}

impl TokenLaw {
    pub(super) fn new(skew: &Skew, vocabulary: u64, predictable: f64, key: u64) -> Self {
        Self { popularity: Popularity::unscattered(skew, vocabulary), vocabulary, predictable, key }
    }

    /// The token at a place of the text that begins at `first`.
    pub(super) fn token(&self, at: u64, first: u64) -> u64 {
        // Back to the last token that does not follow from the one before it, and forward from there.
        let mut origin = at;
        while origin > first && unit(rng::draw(self.key, origin)) < self.predictable {
            origin -= 1;
        }
        let fresh = self.popularity.row(rng::draw(rng::stream(self.key, 1), origin));
        (origin + 1..=at).fold(fresh, |token, place| {
            let follower = rng::draw(rng::stream(self.key, 2), place) % FOLLOWERS;
            self.popularity.row(rng::draw(rng::stream(self.key, 3), token * FOLLOWERS + follower)) % self.vocabulary
        })
    }
}
