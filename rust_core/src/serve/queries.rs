//! Streams of queries: generated, or cut out of a trace. A query follows from its number alone, so that runs at several loads
//! see the same ones.

use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::rng;
use crate::trace::{Bags, Scatter, TraceReader, Zipf, below};

/// How the lists of one table are drawn.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListLaw {
    /// Rows of the table.
    pub rows: u64,
    /// Whether a query has one list, its user's; otherwise it has one for each candidate.
    pub is_user: bool,
    /// Mean length of a list; lengths are uniform from 1 to twice the mean less one.
    pub ids_per_list: u32,
    /// A row of rank r is drawn with a probability in proportion to r to minus this.
    pub exponent: f64,
}

/// Where queries come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum QueryConfig {
    /// Users and items with lists of their own, drawn with skew.
    Generated {
        /// One law a table.
        tables: Vec<ListLaw>,
        /// How many users there are,
        users: u64,
        /// and how skewed it is who asks.
        user_exponent: f64,
        /// The same of items, among which candidates are drawn.
        items: u64,
        /// Their skew.
        item_exponent: f64,
        /// Candidates of a query.
        candidates: u32,
        /// After so many queries each list of a user is another one. 0: never.
        list_life_queries: u64,
        /// Seed of all draws.
        seed: u64,
    },
    /// So many consecutive samples of a trace make a query, whose user is that of the first.
    Trace {
        /// The trace.
        path: PathBuf,
        /// Which tables are a user's.
        is_user: Vec<bool>,
        /// Candidates of a query.
        candidates: u32,
    },
}

/// The lists of one table in a query.
#[derive(Debug, Clone, Default)]
pub(super) struct Lists {
    pub(super) rows: Vec<u64>,
    /// Where each list begins.
    pub(super) starts: Vec<u32>,
}

/// One query, table by table.
#[derive(Debug, Default)]
pub(super) struct Query {
    pub(super) tables: Vec<Lists>,
}

impl Clone for Query {
    fn clone(&self) -> Self {
        Self { tables: self.tables.clone() }
    }

    /// Into the memory that is there.
    fn clone_from(&mut self, other: &Self) {
        self.tables.resize_with(other.tables.len(), Lists::default);
        for (lists, other) in self.tables.iter_mut().zip(&other.tables) {
            lists.rows.clone_from(&other.rows);
            lists.starts.clone_from(&other.starts);
        }
    }
}

#[derive(Debug)]
struct Generator {
    laws: Vec<(ListLaw, Zipf, Scatter)>,
    /// Tables of which only the lengths of lists matter.
    is_fixed: Vec<bool>,
    users: Zipf,
    items: Zipf,
    candidates: u64,
    list_life_queries: u64,
    seed: u64,
}

/// All samples of a trace: of each table the rows and where each bag begins.
#[derive(Debug)]
struct Recorded {
    tables: Vec<(Vec<u64>, Vec<usize>)>,
    is_user: Vec<bool>,
    candidates: usize,
    samples: usize,
}

#[derive(Debug)]
enum Source {
    Generated(Generator),
    Recorded(Recorded),
}

/// A stream of queries.
#[derive(Debug)]
pub(super) struct Queries(Source);

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Config, why))
}

impl Queries {
    /// Of tables in memory lists have their lengths, and rows that mean nothing where they would have to be drawn.
    pub(super) fn new(config: &QueryConfig, is_fixed: Vec<bool>) -> Result<Self> {
        match config {
            QueryConfig::Generated {
                tables,
                users,
                user_exponent,
                items,
                item_exponent,
                candidates,
                list_life_queries,
                seed,
            } => {
                if tables.len() != is_fixed.len() {
                    let named = tables.len();
                    return refuse(format!("there are laws for {named} tables, and the model has {}", is_fixed.len()));
                }
                let numbers = [*users, *items, u64::from(*candidates)];
                if numbers.contains(&0) || tables.iter().any(|law| law.rows == 0 || law.ids_per_list == 0) {
                    return refuse("users, items, candidates, rows and ids_per_list must be at least 1");
                }
                let exponents = tables.iter().map(|law| law.exponent).chain([*user_exponent, *item_exponent]);
                if exponents.clone().any(|exponent| !(0.0..=10.0).contains(&exponent)) {
                    return refuse("exponents of popularity must lie between 0 and 10");
                }
                let law = |(table, law): (usize, &ListLaw)| {
                    let scatter = Scatter::new(law.rows, rng::stream(*seed, table as u64));
                    (*law, Zipf::new(law.rows, law.exponent, 0.0), scatter)
                };
                Ok(Self(Source::Generated(Generator {
                    laws: tables.iter().enumerate().map(law).collect(),
                    is_fixed,
                    users: Zipf::new(*users, *user_exponent, 0.0),
                    items: Zipf::new(*items, *item_exponent, 0.0),
                    candidates: u64::from(*candidates),
                    list_life_queries: *list_life_queries,
                    seed: *seed,
                })))
            }
            QueryConfig::Trace { path, is_user, candidates } => Recorded::load(path, is_user, *candidates as usize),
        }
    }

    /// How many there are; `None`: as many as one likes.
    pub(super) fn count(&self) -> Option<u64> {
        match &self.0 {
            Source::Generated(_) => None,
            Source::Recorded(recorded) => Some((recorded.samples / recorded.candidates) as u64),
        }
    }

    /// The query of a number below `count`.
    pub(super) fn fill(&self, number: u64, query: &mut Query) {
        match &self.0 {
            Source::Generated(generator) => generator.fill(number, query),
            Source::Recorded(recorded) => recorded.fill(number as usize, query),
        }
    }
}

impl Generator {
    fn fill(&self, number: u64, query: &mut Query) {
        query.tables.resize_with(self.laws.len(), Lists::default);
        let draws = rng::stream(self.seed ^ 0x7573_6572, number);
        let user = self.users.rank(rng::stream(draws, 0));
        for (table, ((law, zipf, scatter), lists)) in self.laws.iter().zip(&mut query.tables).enumerate() {
            let is_drawn = !self.is_fixed[table];
            lists.rows.clear();
            lists.starts.clear();
            let owners = if law.is_user { 1 } else { self.candidates };
            for owner in 0..owners {
                let owner = if law.is_user { user } else { self.items.rank(rng::stream(draws, owner + 1)) };
                let key = rng::stream(rng::stream(self.seed ^ 0x6c69_7374, table as u64), owner);
                let life = if law.is_user { self.list_life_queries } else { 0 };
                // The lists of different users change at different times.
                let phase = rng::draw(key, 0).checked_rem(life).unwrap_or(0);
                let version = (number + phase).checked_div(life).unwrap_or(0);
                let key = rng::stream(key, version);
                let length = 1 + below(rng::draw(key, 0), 2 * u64::from(law.ids_per_list) - 1);
                lists.starts.push(lists.rows.len() as u32);
                let draw = |position| scatter.at(zipf.rank(rng::stream(key, position)));
                lists.rows.extend((1..=length).map(|position| if is_drawn { draw(position) } else { 0 }));
            }
        }
    }
}

impl Recorded {
    fn load(path: &std::path::Path, is_user: &[bool], candidates: usize) -> Result<Queries> {
        let mut reader = TraceReader::open(path)?;
        let named = reader.description().tables.len();
        if named != is_user.len() || candidates == 0 {
            return refuse(format!(
                "the trace has {named} tables and the model {}; a query has at least one candidate, not {candidates}",
                is_user.len()
            ));
        }
        let mut tables = vec![(Vec::new(), vec![0usize]); named];
        let mut batch: Vec<Bags> = Vec::new();
        let mut samples = 0;
        while reader.read(&mut batch)? {
            let bags = batch[0].lengths.len();
            if batch.iter().any(|of_table| of_table.lengths.len() != bags) {
                return refuse("the tables of the trace have different numbers of bags; a sample has one of each");
            }
            samples += bags;
            for ((rows, starts), of_table) in tables.iter_mut().zip(&batch) {
                rows.extend_from_slice(&of_table.ids);
                for &length in &of_table.lengths {
                    starts.push(starts[starts.len() - 1] + length as usize);
                }
            }
        }
        if samples < candidates {
            return refuse(format!("the trace has {samples} samples; a query of {candidates} candidates needs more"));
        }
        Ok(Queries(Source::Recorded(Self { tables, is_user: is_user.to_vec(), candidates, samples })))
    }

    fn fill(&self, number: usize, query: &mut Query) {
        query.tables.resize_with(self.tables.len(), Lists::default);
        let first = number % (self.samples / self.candidates) * self.candidates;
        for (((rows, starts), &is_user), lists) in self.tables.iter().zip(&self.is_user).zip(&mut query.tables) {
            let count = if is_user { 1 } else { self.candidates };
            let begin = starts[first];
            lists.rows.clear();
            lists.rows.extend_from_slice(&rows[begin..starts[first + count]]);
            lists.starts.clear();
            lists.starts.extend(starts[first..first + count].iter().map(|start| (start - begin) as u32));
        }
    }
}
