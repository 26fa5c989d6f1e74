//! Gather on the way forward, gradients and exact updates on the way back.

use std::sync::Arc;

use super::ticket::{LookupPlan, TicketId};
use super::{Place, State, Store};
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
            slots: &self.plan.slots,
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
        let table = &state.tables[plan.table];
        let dim = table.config.dim;
        check_shapes(&plan, dim, pooled, out.len())?;
        pool_rows(
            state.weights(table.place),
            dim,
            &plan.slots,
            &plan.offsets,
            pooled.pooling,
            pooled.sample_weights,
            out,
        );
        state.charge(self, Operation::Read, plan.slots.len(), dim * size_of::<f32>());
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
        let state = self.lock()?;
        let plan = state.ready_lookup(ticket, lookup)?;
        let table = &state.tables[plan.table];
        check_shapes(
            &plan,
            table.config.dim,
            Pooled { pooling: Pooling::Sum, sample_weights: Some(out) },
            gradients.len(),
        )?;
        gradient_of_sample_weights(
            state.weights(table.place),
            table.config.dim,
            &plan.slots,
            &plan.offsets,
            gradients,
            out,
        );
        Ok(())
    }

    /// Keeps the gradient of one lookup (B x D) for the next `step`. Its rows stay in flight until then.
    pub fn accumulate(&self, ticket: TicketId, lookup: usize, pooled: Pooled<'_>, gradients: &[f32]) -> Result<()> {
        let mut state = self.lock()?;
        let plan = state.ready_lookup(ticket, lookup)?;
        check_shapes(&plan, state.tables[plan.table].config.dim, pooled, gradients.len())?;
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
        check_shapes(&plan, state.tables[plan.table].config.dim, pooled, gradients.len())?;
        let contribution = Contribution {
            slots: &plan.slots,
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
        for entry in pending {
            let released = {
                let mut state = self.lock()?;
                let ticket = state.tickets.get_mut(&entry.ticket).expect("a ticket with gradients is kept");
                ticket.pending -= 1;
                ticket.abandoned && ticket.pending == 0
            };
            if released {
                self.release(TicketId(entry.ticket))?;
            }
        }
        Ok(())
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
        if weights.len() != plan.slots.len() {
            return Err(Error::new(
                ErrorKind::Input,
                format!("there are {} sample weights for {} ids; give one each", weights.len(), plan.slots.len()),
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
        // Rows that it shares may still be on the way of an earlier ticket.
        if !self.tickets.range(..=ticket.0).all(|(_, other)| other.has_arrived()) {
            return fail(format!("ticket {} was not waited for; call wait() before using its rows", ticket.0));
        }
        entry
            .lookups
            .get(lookup)
            .map_or_else(|| fail(format!("ticket {} has no lookup {lookup}", ticket.0)), |plan| Ok(Arc::clone(plan)))
    }

    fn apply(&mut self, store: &Store, table: usize, contributions: &[Contribution<'_>], lr: f32) {
        let entry = &self.tables[table];
        let (dim, optimizer) = (entry.config.dim, store.config.optimizer);
        let mut rows = 0;
        match entry.place {
            Place::Resident(at) => {
                let home = &mut self.resident[at];
                let memory = (home.weights.as_f32_mut(), home.state.as_f32_mut());
                coalesce_and_update(contributions, dim, optimizer, lr, memory, |_| rows += 1);
            }
            Place::Pooled(at) => {
                let mut touched = Vec::new();
                coalesce_and_update(contributions, dim, optimizer, lr, self.pools[at].rows_mut(), |slot| {
                    touched.push(slot);
                });
                rows = touched.len();
                for slot in touched {
                    self.pools[at].dirty.insert(u64::from(slot));
                }
            }
        }
        let row_bytes = (dim + optimizer.state_floats()) * size_of::<f32>();
        self.charge(store, Operation::Read, rows, row_bytes);
        self.charge(store, Operation::Write, rows, row_bytes);
    }

    /// Accounts for row accesses to the fastest tier: in virtual time they take as long as the
    /// device model says; on a wall clock they took the time that they took.
    fn charge(&mut self, store: &Store, operation: Operation, rows: usize, row_bytes: usize) {
        let (rows, row_bytes) = (rows as u64, row_bytes as u64);
        let now_ns = store.clock.now_ns();
        let end_ns = self.memory.run_scattered(0, now_ns, operation, rows, row_bytes);
        let duration_ns = end_ns.saturating_sub(now_ns);
        self.counters.asked_bytes[0] += rows * row_bytes;
        store.clock.advance(duration_ns);
    }
}
