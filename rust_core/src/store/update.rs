//! Gather on the way forward, gradients and exact updates on the way back.

use std::sync::Arc;

use super::lookup::Lookup;
use super::ticket::{LookupPlan, TicketId};
use super::{NonFinite, State, Store};
use crate::device::Operation;
use crate::embedding::{
    Contribution, Noise, PlacedLookup, Pooling, Rounding, RowType, Runtime, Slab, Step, coalesce_and_update,
    count_non_finite, gradient_of_sample_weights, noise_of_table, pool_rows, squared_gradient_norm,
};
use crate::error::{Error, ErrorKind, Result};
use crate::tier::split_row_key;

/// Positions of a piece of a gather at least; fewer are not worth another thread.
const PIECE_POSITIONS_MIN: usize = 512;
/// Values of gradients that are worth another thread.
const VALUES_PER_THREAD: usize = 1 << 14;
/// Pieces of a gather for each thread, so that an uneven one does not decide.
const PIECES_PER_THREAD: usize = 4;

/// How a lookup is pooled.
#[derive(Debug, Clone, Copy)]
pub struct Pooled<'a> {
    /// Sum, mean, or none.
    pub pooling: Pooling,
    /// One factor a position; only with a sum.
    pub sample_weights: Option<&'a [f32]>,
}

/// One lookup of a ticket on the way forward.
#[derive(Debug)]
pub struct Gathered<'a> {
    /// Its number in the ticket.
    pub lookup: usize,
    /// How it is pooled.
    pub pooled: Pooled<'a>,
    /// B x D; L x D without pooling.
    pub out: &'a mut [f32],
}

/// One lookup of a ticket on the way back.
#[derive(Debug, Clone, Copy)]
pub struct Gradient<'a> {
    /// Its number in the ticket.
    pub lookup: usize,
    /// How it was pooled.
    pub pooled: Pooled<'a>,
    /// B x D; L x D without pooling.
    pub values: &'a [f32],
}

/// Gradients that wait for a step.
pub(super) struct Pending {
    ticket: u64,
    lookup: usize,
    plan: Arc<LookupPlan>,
    pooling: Pooling,
    sample_weights: Option<Vec<f32>>,
    gradients: Vec<f32>,
}

/// A gradient with the places of its rows.
#[derive(Clone, Copy)]
struct PlacedGradient<'a> {
    plan: &'a LookupPlan,
    pooled: Pooled<'a>,
    values: &'a [f32],
}

impl Pending {
    fn placed(&self) -> PlacedGradient<'_> {
        let pooled = Pooled { pooling: self.pooling, sample_weights: self.sample_weights.as_deref() };
        PlacedGradient { plan: &self.plan, pooled, values: &self.gradients }
    }
}

impl Store {
    /// Pools the rows of one lookup of a ticket into `out` of B x D. The ticket was waited for.
    pub fn gather(&self, ticket: TicketId, lookup: usize, pooled: Pooled<'_>, out: &mut [f32]) -> Result<()> {
        self.gather_all(ticket, vec![Gathered { lookup, pooled, out }])
    }

    /// Pools the rows of several lookups of a ticket, whatever their columns and bags. The ticket was waited for.
    pub fn gather_all(&self, ticket: TicketId, gathered: Vec<Gathered<'_>>) -> Result<()> {
        let mut state = self.lock()?;
        let plans = gathered.iter().map(|one| {
            let plan = state.ready_lookup(ticket, one.lookup)?;
            self.check_shapes(&plan, one.pooled, one.out.len())?;
            Ok(plan)
        });
        let plans: Vec<Arc<LookupPlan>> = plans.collect::<Result<_>>()?;
        let positions: usize = plans.iter().map(|plan| plan.places.len()).sum();
        self.threads.wake(positions / PIECE_POSITIONS_MIN);
        let pieces = self.threads.count() * PIECES_PER_THREAD;
        let piece = (positions / pieces).max(PIECE_POSITIONS_MIN);
        let mut tasks = Vec::new();
        for (plan, Gathered { pooled, mut out, .. }) in plans.iter().zip(gathered) {
            let lookup = self.placed(&state, plan, pooled);
            let outputs = lookup.outputs();
            let pieces = if self.threads.count() == 1 { 1 } else { plan.places.len().div_ceil(piece).max(1) };
            let mut first = 0;
            for number in 1..=pieces {
                let end = outputs * number / pieces;
                let (mine, rest) = out.split_at_mut((end - first) * lookup.shape.dim);
                tasks.push((lookup, first..end, mine));
                (out, first) = (rest, end);
            }
        }
        self.threads.each(tasks, |(lookup, outputs, out)| pool_rows(self.instructions, lookup, outputs, out));
        for plan in &plans {
            let row_bytes = self.tables[plan.table].shape.weight_bytes();
            state.charge(self, plan.table, Operation::Read, plan.places.len(), row_bytes);
        }
        Ok(())
    }

    /// Fetches a batch, pools its lookups, and gives the rows back: a forward pass without a backward one.
    pub fn pool(
        &self,
        lookups: &[Lookup<'_>],
        gathered: Vec<Gathered<'_>>,
        is_interrupted: &dyn Fn() -> bool,
    ) -> Result<()> {
        let ticket = self.prefetch(lookups)?;
        let pooled = self.wait(ticket, is_interrupted).and_then(|()| self.gather_all(ticket, gathered));
        pooled.and(self.release(ticket))
    }

    /// Gradient of each sample weight of a lookup, from `gradients` of B x D. Rows must not have been updated since the gather.
    pub fn sample_weight_gradient(
        &self,
        ticket: TicketId,
        lookup: usize,
        gradients: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let mut state = self.lock()?;
        let plan = state.ready_lookup(ticket, lookup)?;
        let pooled = Pooled { pooling: Pooling::Sum, sample_weights: Some(out) };
        self.check_shapes(&plan, pooled, gradients.len())?;
        let placed = self.placed(&state, &plan, Pooled { sample_weights: None, ..pooled });
        gradient_of_sample_weights(self.instructions, placed, gradients, out);
        let row_bytes = self.tables[plan.table].shape.weight_bytes();
        state.charge(self, plan.table, Operation::Read, plan.places.len(), row_bytes);
        Ok(())
    }

    /// Keeps the gradient of one lookup (B x D) for the next `step`. Its rows stay in flight until then.
    pub fn accumulate(&self, ticket: TicketId, lookup: usize, pooled: Pooled<'_>, gradients: &[f32]) -> Result<()> {
        self.accumulate_all(ticket, &[Gradient { lookup, pooled, values: gradients }])
    }

    /// Keeps the gradients of several lookups of a ticket for the next `step`: all of them, or after an error none.
    pub fn accumulate_all(&self, ticket: TicketId, gradients: &[Gradient<'_>]) -> Result<()> {
        let mut state = self.lock()?;
        let plans = state.checked_plans(self, ticket, gradients)?;
        for (plan, gradient) in plans.into_iter().zip(gradients) {
            let Gradient { lookup, pooled, values } = *gradient;
            state.tickets.get_mut(&ticket.0).expect("its plans were found").pending += 1;
            state.pending.push(Pending {
                ticket: ticket.0,
                lookup,
                plan,
                pooling: pooled.pooling,
                sample_weights: pooled.sample_weights.map(<[f32]>::to_vec),
                gradients: values.to_vec(),
            });
        }
        Ok(())
    }

    /// Applies the gradient of one lookup at once, as one optimizer step.
    pub fn update(
        &self,
        ticket: TicketId,
        lookup: usize,
        pooled: Pooled<'_>,
        gradients: &[f32],
        lr: f32,
    ) -> Result<()> {
        self.update_all(ticket, &[Gradient { lookup, pooled, values: gradients }], lr)
    }

    /// Applies the gradients of several lookups of a ticket at once: one optimizer step.
    ///
    /// # Errors
    ///
    /// `Input` for wrong shapes, or for gradients that are not finite if those are refused; no row has changed then.
    pub fn update_all(&self, ticket: TicketId, gradients: &[Gradient<'_>], lr: f32) -> Result<()> {
        if gradients.is_empty() {
            return Ok(());
        }
        // As far as the size of the gradients tells.
        self.threads.wake(gradients.iter().map(|gradient| gradient.values.len()).sum::<usize>() / VALUES_PER_THREAD);
        let mut state = self.lock()?;
        let plans = state.checked_plans(self, ticket, gradients)?;
        let placed = plans.iter().zip(gradients);
        let placed: Vec<PlacedGradient<'_>> =
            placed.map(|(plan, of)| PlacedGradient { plan, pooled: of.pooled, values: of.values }).collect();
        state.apply(self, &placed, lr);
        Ok(())
    }

    /// Applies all kept gradients: one update a row, contributions in order of (ticket, lookup, bag, position).
    pub fn step(&self, lr: f32) -> Result<()> {
        let mut state = self.lock()?;
        if state.pending.is_empty() {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut state.pending);
        pending.sort_by_key(|entry| (entry.plan.table, entry.ticket, entry.lookup));
        let placed: Vec<PlacedGradient<'_>> = pending.iter().map(Pending::placed).collect();
        state.apply(self, &placed, lr);
        drop(placed);
        drop(state);
        self.settle(&pending)
    }

    /// Forgets all kept gradients.
    pub fn discard(&self) -> Result<()> {
        let pending = std::mem::take(&mut self.lock()?.pending);
        self.settle(&pending)
    }

    /// The Euclidean norm of all kept gradients, each row's summed over its lookups first.
    pub fn gradient_norm(&self) -> Result<f64> {
        let mut state = self.lock()?;
        let State { pending, scratch, .. } = &mut *state;
        pending.sort_by_key(|entry| (entry.plan.table, entry.ticket, entry.lookup));
        // By table, so that the order of the sum is the same whatever shares a slab.
        let tables = pending.chunk_by(|a, b| a.plan.table == b.plan.table).map(|group| {
            let contributions: Vec<Contribution<'_>> =
                group.iter().map(|entry| entry.placed().contribution()).collect();
            let dim = self.tables[group[0].plan.table].config.dim;
            squared_gradient_norm(self.instructions, &contributions, dim, scratch)
        });
        Ok(libm::sqrt(tables.sum()))
    }

    /// Multiplies all kept gradients by a factor.
    ///
    /// # Errors
    ///
    /// `Input` for a factor that is not finite, if such gradients are refused.
    pub fn scale_gradients(&self, factor: f32) -> Result<()> {
        if !factor.is_finite() && self.config.non_finite_gradients == NonFinite::Refuse {
            return Err(Error::new(
                ErrorKind::Input,
                format!("gradients cannot be scaled by {factor}; forget them instead"),
            ));
        }
        let mut state = self.lock()?;
        state.pending.iter_mut().flat_map(|entry| &mut entry.gradients).for_each(|value| *value *= factor);
        Ok(())
    }

    /// Releases the tickets whose owner let go of them before their gradients were used.
    fn settle(&self, pending: &[Pending]) -> Result<()> {
        let mut outcome = Ok(());
        for entry in pending {
            let released = {
                let mut state = self.lock()?;
                let Some(ticket) = state.tickets.get_mut(&entry.ticket) else { continue };
                ticket.pending -= 1;
                ticket.abandoned && ticket.pending == 0
            };
            if released {
                let released = match self.release(TicketId(entry.ticket)) {
                    // Another thread's release closed it in between.
                    Err(error) if error.kind() == ErrorKind::Input => Ok(()),
                    other => other,
                };
                outcome = outcome.and(released);
            }
        }
        outcome
    }

    fn placed<'a>(&self, state: &'a State, plan: &'a LookupPlan, pooled: Pooled<'a>) -> PlacedLookup<'a> {
        let table = &self.tables[plan.table];
        PlacedLookup {
            weights: state.pools[table.pool].weights(),
            shape: table.shape,
            slots: &plan.places,
            offsets: &plan.offsets,
            pooling: pooled.pooling,
            sample_weights: pooled.sample_weights,
        }
    }

    fn check_shapes(&self, plan: &LookupPlan, pooled: Pooled<'_>, len: usize) -> Result<()> {
        let table = &self.tables[plan.table].config;
        let place = |why: String| Err(Error::new(ErrorKind::Input, why).with_context("table", &table.name));
        let outputs = pooled.pooling.outputs(&plan.offsets, plan.places.len());
        let expected = outputs * table.dim;
        if len != expected {
            let of = if pooled.pooling == Pooling::None { "ids" } else { "bags" };
            return place(format!("there are {len} values; {outputs} {of} of {} columns have {expected}", table.dim));
        }
        if let Some(weights) = pooled.sample_weights {
            if weights.len() != plan.places.len() {
                return place(format!(
                    "there are {} sample weights for {} ids; give one each",
                    weights.len(),
                    plan.places.len()
                ));
            }
            if pooled.pooling != Pooling::Sum {
                return place("sample weights go with a sum; use mode = \"sum\"".into());
            }
        }
        Ok(())
    }
}

impl<'a> PlacedGradient<'a> {
    fn contribution(self) -> Contribution<'a> {
        Contribution {
            slots: &self.plan.places,
            offsets: &self.plan.offsets,
            pooling: self.pooled.pooling,
            sample_weights: self.pooled.sample_weights,
            gradients: self.values,
        }
    }
}

impl State {
    fn ready_lookup(&self, ticket: TicketId, lookup: usize) -> Result<Arc<LookupPlan>> {
        let fail = |why: String| Err(Error::new(ErrorKind::Input, why));
        let Some(entry) = self.tickets.get(&ticket.0) else {
            return fail(format!("ticket {} was released; a ticket is used between prefetch and release", ticket.0));
        };
        if entry.abandoned && entry.pending == 0 {
            return fail(format!("ticket {} was released, and its rows go as soon as they can", ticket.0));
        }
        // Rows that it shares may still be on the way of an earlier ticket.
        if !self.tickets.range(..=ticket.0).all(|(_, other)| other.has_arrived()) {
            return fail(format!("ticket {} was not waited for; call wait() before using its rows", ticket.0));
        }
        entry
            .lookups
            .get(lookup)
            .map_or_else(|| fail(format!("ticket {} has no lookup {lookup}", ticket.0)), |plan| Ok(Arc::clone(plan)))
    }

    /// The plans of gradients, if all of them may be used.
    fn checked_plans(
        &mut self,
        store: &Store,
        ticket: TicketId,
        gradients: &[Gradient<'_>],
    ) -> Result<Vec<Arc<LookupPlan>>> {
        let mut plans = Vec::with_capacity(gradients.len());
        for gradient in gradients {
            let plan = self.ready_lookup(ticket, gradient.lookup)?;
            store.check_shapes(&plan, gradient.pooled, gradient.values.len())?;
            plans.push(plan);
        }
        let checked =
            plans.iter().zip(gradients).map(|(plan, gradient)| self.check_finite(store, plan.table, gradient));
        // All of them are counted, whichever is refused.
        checked.collect::<Vec<_>>().into_iter().collect::<Result<()>>()?;
        Ok(plans)
    }

    /// Counts values that are not finite, and refuses them if the store is to.
    fn check_finite(&mut self, store: &Store, table: usize, gradient: &Gradient<'_>) -> Result<()> {
        let weights = gradient.pooled.sample_weights.unwrap_or(&[]);
        let count = count_non_finite(store.instructions, gradient.values);
        let in_weights = count_non_finite(store.instructions, weights);
        self.non_finite_values += count + in_weights;
        if count + in_weights == 0 || store.config.non_finite_gradients == NonFinite::Pass {
            return Ok(());
        }
        let table = &store.tables[table].config;
        let (what, values, width) = if count > 0 {
            let of = if gradient.pooled.pooling == Pooling::None { "position" } else { "bag" };
            (of, gradient.values, table.dim)
        } else {
            ("position", weights, 1)
        };
        let first = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
        Err(Error::new(
            ErrorKind::Input,
            format!(
                "{count} gradient values and {in_weights} sample weights are NaN or infinite; no row was changed. Lower the \
                 learning rate, or pass them with non_finite_gradients = \"pass\""
            ),
        )
        .with_context("table", &table.name)
        .with_context(what, first / width)
        .with_context("column", first % width))
    }

    /// One optimizer step with these gradients, table by table.
    fn apply(&mut self, store: &Store, gradients: &[PlacedGradient<'_>], lr: f32) {
        self.steps += 1;
        let step = Step::new(store.config.optimizer, lr, self.steps);
        let runtime = Runtime { instructions: store.instructions, threads: &store.threads };
        let mut order: Vec<usize> = (0..gradients.len()).collect();
        // Stable: lookups of one table keep their order.
        order.sort_by_key(|&at| gradients[at].plan.table);
        for group in order.chunk_by(|&a, &b| gradients[a].plan.table == gradients[b].plan.table) {
            let number = gradients[group[0]].plan.table;
            let table = &store.tables[number];
            let is_random = table.config.rounding == Rounding::Stochastic && table.config.row_type != RowType::Fp32;
            let noise = is_random.then(|| noise_of_table(store.config.seed, self.steps, number));
            let contributions: Vec<Contribution<'_>> = group.iter().map(|&at| gradients[at].contribution()).collect();
            let Self { pools, parts, scratch, .. } = self;
            let pool = &mut pools[table.pool];
            // Resident rows are only counted: there is nothing below that they would be newer than.
            let mut touched = table.is_pooled.then(Vec::new);
            let (weights, state, keys) = pool.split_mut();
            let row_of = |place: u32| match keys.of(place) {
                Some(key) => {
                    let (part, row) = split_row_key(key);
                    parts[part].first_row + row
                }
                None => table.resident_row(parts, place),
            };
            let slab = Slab { weights, state, shape: table.shape };
            let rounding = noise.map(|key| Noise { key, row_of: &row_of });
            let rows = coalesce_and_update(runtime, &contributions, &step, slab, scratch, rounding, touched.as_mut());
            touched.into_iter().flatten().for_each(|place| pool.mark_dirty(place));
            let row_bytes = table.shape.weight_bytes() + table.shape.state_floats * size_of::<f32>();
            self.charge(store, number, Operation::Read, rows, row_bytes);
            self.charge(store, number, Operation::Write, rows, row_bytes);
        }
    }

    /// Accounts for row accesses to the fastest tier: in virtual time they take as long as the
    /// device model says; on a wall clock they took the time that they took.
    fn charge(&mut self, store: &Store, table: usize, operation: Operation, rows: usize, row_bytes: usize) {
        let (rows, row_bytes) = (rows as u64, row_bytes as u64);
        let now_ns = store.clock.now_ns();
        let end_ns = self.memory.run_scattered(0, now_ns, operation, rows, row_bytes);
        let duration_ns = end_ns.saturating_sub(now_ns);
        self.counters[table].memory_bytes += rows * row_bytes;
        store.clock.advance(duration_ns);
    }
}
