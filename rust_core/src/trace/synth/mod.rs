//! Generated traces. A batch follows from the seed and its number, so parts can be made apart and put together;
//! only `stack-distance` has a memory, one for each table.

mod config;
mod popularity;
mod reuse;
mod stack;
mod tokens;
mod zipf;

use std::path::Path;

pub use config::{Law, Skew, SynthConfig, SynthTable};

use self::popularity::Popularity;
use self::reuse::ReuseTable;
use self::stack::StackTable;
use self::tokens::TokenLaw;
pub(crate) use self::zipf::{Scatter, Zipf, below, unit};
use super::format::{Bags, Description, Totals};
use super::writer::TraceWriter;
use crate::error::{Error, ErrorKind, Result};
use crate::rng;

/// Writes a generated trace; before each batch `go_on` is asked whether to.
///
/// # Errors
///
/// `Config` names what is not possible; those of [`TraceWriter`] and, for `stack-distance`, of the other trace.
pub fn synthesize(config: &SynthConfig, origin: &str, path: &Path, mut go_on: impl FnMut() -> bool) -> Result<Totals> {
    config.check()?;
    let description = Description { tables: config.trace_tables(), origin: origin.to_string() };
    description.check()?;
    let mut generators: Vec<Generator> =
        (0..config.tables.len()).map(|table| Generator::new(config, table)).collect::<Result<_>>()?;
    let mut writer = TraceWriter::create(path, description)?;
    let mut batch = vec![Bags::default(); config.tables.len()];
    // What has a memory must see every batch from the first one on.
    let begin = if matches!(config.law, Law::StackDistance { .. }) { 0 } else { config.first_batch };
    for number in begin..config.end_batch {
        if !go_on() {
            return Err(Error::new(ErrorKind::Closed, "generating the trace was interrupted; nothing was left behind"));
        }
        for (generator, bags) in generators.iter_mut().zip(&mut batch) {
            generator.batch(number, bags);
        }
        if number >= config.first_batch {
            writer.write(&batch)?;
        }
    }
    writer.finish()
}

/// One table of a generated trace.
#[derive(Debug)]
struct Generator {
    key: u64,
    rows: u64,
    bags_per_batch: u64,
    pooling: f64,
    law: TableLaw,
}

#[derive(Debug)]
enum TableLaw {
    Zipf(Popularity),
    Stack(Box<StackTable>),
    Drift { popularity: Popularity, working_rows: u64, turnover: f64, once: f64, scatter: Scatter },
    MultiHot(Popularity),
    Session { popularity: Popularity, key: u64, begins: f64, repeats: bool },
    Ngram { tokens: TokenLaw, order: u64 },
    Reuse(ReuseTable),
}

// Purposes of a random stream.
const LENGTHS: u64 = 1;
const IDS: u64 = 2;
const PLACES: u64 = 3;
const CHOICES: u64 = 4;
const EXTRA: u64 = 5;

impl Generator {
    fn new(config: &SynthConfig, table: usize) -> Result<Self> {
        let key = rng::stream(config.seed, table as u64);
        let SynthTable { rows, pooling, .. } = config.tables[table];
        // Of the whole trace, of which perhaps a part is made.
        let accesses = (config.batches as f64 * f64::from(config.bags_per_batch) * pooling) as u64;
        let scatter = || Scatter::new(rows, rng::stream(key, PLACES));
        let law = match &config.law {
            Law::Zipf { skew } => TableLaw::Zipf(Popularity::new(skew, rows, scatter())),
            Law::MultiHot { skew } => TableLaw::MultiHot(Popularity::new(skew, rows, scatter())),
            Law::StackDistance { like } => {
                TableLaw::Stack(Box::new(StackTable::new(like, table, rows, accesses, key)?))
            }
            Law::Drift { skew, working_set, turnover, once } => {
                let working_rows = ((rows as f64 * working_set) as u64).clamp(1, rows);
                // Places of the working set are ranks: they are scattered when a row is put into them.
                let popularity = Popularity::unscattered(skew, working_rows);
                TableLaw::Drift { popularity, working_rows, turnover: *turnover, once: *once, scatter: scatter() }
            }
            Law::Session { skew, samples, repeated } => TableLaw::Session {
                popularity: Popularity::new(skew, rows, scatter()),
                key: rng::stream(config.seed, u64::MAX),
                begins: 1.0 / samples,
                repeats: (table as f64) < (repeated * config.tables.len() as f64).round(),
            },
            Law::Ngram { skew, vocabulary, predictable, orders } => TableLaw::Ngram {
                tokens: TokenLaw::new(skew, *vocabulary, *predictable, rng::stream(config.seed, u64::MAX)),
                order: u64::from(orders[table]),
            },
            Law::Reuse { rows: shares, lookups, reuse_mean } => {
                TableLaw::Reuse(ReuseTable::new(shares, lookups, *reuse_mean, rows, accesses, key)?)
            }
        };
        Ok(Self { key, rows, bags_per_batch: u64::from(config.bags_per_batch), pooling, law })
    }

    fn batch(&mut self, number: u64, bags: &mut Bags) {
        bags.lengths.clear();
        bags.ids.clear();
        for bag in number * self.bags_per_batch..(number + 1) * self.bags_per_batch {
            let source = self.repeated_from(bag);
            let length = self.length(source);
            bags.lengths.push(length);
            for position in 0..u64::from(length) {
                let id = self.id(source, position, number);
                bags.ids.push(id);
            }
        }
    }

    /// The bag whose ids this bag has: the first of its session, or itself.
    fn repeated_from(&self, bag: u64) -> u64 {
        let TableLaw::Session { key, begins, repeats: true, .. } = self.law else { return bag };
        let mut first = bag;
        while first > 0 && unit(rng::draw(key, first)) >= begins {
            first -= 1;
        }
        first
    }

    fn length(&self, bag: u64) -> u32 {
        let whole = self.pooling.floor();
        let longer = unit(rng::draw(rng::stream(self.key, LENGTHS), bag)) < self.pooling - whole;
        whole as u32 + u32::from(longer)
    }

    fn id(&mut self, bag: u64, position: u64, batch: u64) -> u64 {
        let draw_key = rng::draw(rng::stream(self.key, IDS), bag << 20 | position);
        match &mut self.law {
            TableLaw::Zipf(popularity) | TableLaw::Session { popularity, .. } => popularity.row(draw_key),
            TableLaw::Stack(stack) => stack.next(),
            TableLaw::Drift { popularity, working_rows, turnover, once, scatter } => {
                let chance = rng::draw(rng::stream(self.key, CHOICES), bag << 20 | position);
                if unit(chance) < *once {
                    return below(rng::mix(chance), self.rows);
                }
                let place = popularity.row(draw_key);
                // Each place gets a new row once in 1 / turnover batches; places take turns.
                let phase = unit(rng::draw(rng::stream(self.key, EXTRA), place));
                let generation = (batch as f64 * *turnover + phase).floor() as u64;
                scatter.at((place + *working_rows * generation) % self.rows)
            }
            TableLaw::MultiHot(popularity) => {
                let first = popularity.row(rng::draw(rng::stream(self.key, IDS), bag << 20));
                if position == 0 {
                    return first;
                }
                below(rng::draw(rng::stream(rng::stream(self.key, EXTRA), first), position), self.rows)
            }
            TableLaw::Ngram { tokens, order } => {
                let first = batch * self.bags_per_batch;
                let gram = (0..*order).fold(self.key, |hash, back| {
                    // A batch is one text: before its first token there is none.
                    let token = bag.checked_sub(back).filter(|&at| at >= first).map(|at| tokens.token(at, first));
                    rng::mix(hash ^ token.map_or(u64::MAX, |token| token.wrapping_mul(2)))
                });
                rng::draw(gram, position) % self.rows
            }
            TableLaw::Reuse(table) => table.row(bag * self.pooling as u64 + position),
        }
    }
}
