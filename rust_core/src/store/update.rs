//! Gather on the way forward, gradients and exact updates on the way back.

use std::sync::Arc;

use super::ticket::{LookupPlan, TicketId};
use super::{NonFinite, State, Store};
use crate::device::Operation;
use crate::embedding::{Contribution, Pooling, coalesce_and_update, gradient_of_sample_weights, pool_rows};
use crate::error::{Error, ErrorKind, Result};

/// How a lookup is pooled.
#[derive(Debug, Clone, Copy)]
pub struct Pooled<'a> {
    /// Sum or mean.
    pub pooling: Pooling,
    /// One factor a position; only with a sum.
    pub sample_weights: Option<&'a [f32]>,
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

impl Pending {
    fn contribution(&self) -> Contribution<'_> {
        Contribution {
            slots: &self.plan.places,
            offsets: &self.plan.offsets,
            pooling: self.pooling,
            sample_weights: self.sample_weights.as_deref(),
            gradients: &self.gradients,
        }
    }
}

impl Store {
    /// Pools the rows of one lookup of a ticket into `out` of B x D. The ticket was waited for.
    pub fn gather(&self, ticket: TicketId, lookup: usize, pooled: Pooled<'_>, out: &mut [f32]) -> Result<()> {
        let mut state = self.lock()?;
        let plan = state.ready_lookup(ticket, lookup)?;
        let table = &self.tables[plan.table];
        let dim = table.config.dim;
        check_shapes(&plan, dim, pooled, out.len())?;
        let weights = state.pools[table.pool].weights();
        pool_rows(weights, dim, &plan.places, &plan.offsets, pooled.pooling, pooled.sample_weights, out);
        state.charge(self, plan.table, Operation::Read, plan.places.len(), dim * size_of::<f32>());
        Ok(())
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
        let table = &self.tables[plan.table];
        let dim = table.config.dim;
        check_shapes(&plan, dim, Pooled { pooling: Pooling::Sum, sample_weights: Some(out) }, gradients.len())?;
        let weights = state.pools[table.pool].weights();
        gradient_of_sample_weights(weights, dim, &plan.places, &plan.offsets, gradients, out);
        state.charge(self, plan.table, Operation::Read, plan.places.len(), dim * size_of::<f32>());
        Ok(())
    }

    /// Keeps the gradient of one lookup (B x D) for the next `step`. Its rows stay in flight until then.
    pub fn accumulate(&self, ticket: TicketId, lookup: usize, pooled: Pooled<'_>, gradients: &[f32]) -> Result<()> {
        let mut state = self.lock()?;
        let plan = state.ready_lookup(ticket, lookup)?;
        check_shapes(&plan, self.tables[plan.table].config.dim, pooled, gradients.len())?;
        state.check_finite(self, plan.table, gradients)?;
        state.tickets.get_mut(&ticket.0).expect("ready_lookup found it").pending += 1;
        state.pending.push(Pending {
            ticket: ticket.0,
            lookup,
            plan,
            pooling: pooled.pooling,
            sample_weights: pooled.sample_weights.map(<[f32]>::to_vec),
            gradients: gradients.to_vec(),
        });
        Ok(())
    }

    /// Applies the gradient of one lookup at once. For steps that look a table up once.
    pub fn update(
        &self,
        ticket: TicketId,
        lookup: usize,
        pooled: Pooled<'_>,
        gradients: &[f32],
        lr: f32,
    ) -> Result<()> {
        let mut state = self.lock()?;
        let plan = state.ready_lookup(ticket, lookup)?;
        check_shapes(&plan, self.tables[plan.table].config.dim, pooled, gradients.len())?;
        state.check_finite(self, plan.table, gradients)?;
        let contribution = Contribution {
            slots: &plan.places,
            offsets: &plan.offsets,
            pooling: pooled.pooling,
            sample_weights: pooled.sample_weights,
            gradients,
        };
        state.apply(self, plan.table, &[contribution], lr);
        Ok(())
    }

    /// Applies all kept gradients: one update a row, contributions in order of (ticket, lookup, bag, position).
    pub fn step(&self, lr: f32) -> Result<()> {
        let mut state = self.lock()?;
        let mut pending = std::mem::take(&mut state.pending);
        pending.sort_by_key(|entry| (entry.plan.table, entry.ticket, entry.lookup));
        for group in pending.chunk_by(|a, b| a.plan.table == b.plan.table) {
            let contributions: Vec<Contribution<'_>> = group.iter().map(Pending::contribution).collect();
            state.apply(self, group[0].plan.table, &contributions, lr);
        }
        drop(state);
        self.settle(&pending)
    }

    /// Forgets all kept gradients.
    pub fn discard(&self) -> Result<()> {
        let pending = std::mem::take(&mut self.lock()?.pending);
        self.settle(&pending)
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
}

fn check_shapes(plan: &LookupPlan, dim: usize, pooled: Pooled<'_>, pooled_len: usize) -> Result<()> {
    let expected = plan.offsets.len() * dim;
    if pooled_len != expected {
        return Err(Error::new(
            ErrorKind::Input,
            format!(
                "pooled rows have {pooled_len} values; {} bags of {dim} columns have {expected}",
                plan.offsets.len()
            ),
        ));
    }
    if let Some(weights) = pooled.sample_weights {
        if weights.len() != plan.places.len() {
            return Err(Error::new(
                ErrorKind::Input,
                format!("there are {} sample weights for {} ids; give one each", weights.len(), plan.places.len()),
            ));
        }
        if pooled.pooling == Pooling::Mean {
            return Err(Error::new(ErrorKind::Input, "sample weights go with a sum; use mode = \"sum\""));
        }
    }
    Ok(())
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

    /// Counts gradient values that are not finite, and refuses them if the store is to.
    fn check_finite(&mut self, store: &Store, table: usize, gradients: &[f32]) -> Result<()> {
        let count = gradients.iter().filter(|value| !value.is_finite()).count();
        self.non_finite_values += count as u64;
        if count == 0 || store.config.non_finite_gradients == NonFinite::Pass {
            return Ok(());
        }
        let table = &store.tables[table].config;
        let first = gradients.iter().position(|value| !value.is_finite()).unwrap_or(0);
        Err(Error::new(
            ErrorKind::Input,
            format!("{count} gradient values are NaN or infinite; no row of this lookup was changed"),
        )
        .with_context("table", &table.name)
        .with_context("bag", first / table.dim)
        .with_context("column", first % table.dim))
    }

    fn apply(&mut self, store: &Store, number: usize, contributions: &[Contribution<'_>], lr: f32) {
        let table = &store.tables[number];
        let (dim, optimizer) = (table.config.dim, store.config.optimizer);
        let pool = &mut self.pools[table.pool];
        let mut touched = Vec::new();
        coalesce_and_update(contributions, dim, optimizer, lr, pool.rows_mut(), |place| touched.push(place));
        for &place in &touched {
            pool.mark_dirty(place);
        }
        let row_bytes = (dim + optimizer.state_floats()) * size_of::<f32>();
        self.charge(store, number, Operation::Read, touched.len(), row_bytes);
        self.charge(store, number, Operation::Write, touched.len(), row_bytes);
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
