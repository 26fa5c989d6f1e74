//! The write buffer of one device: a write is in it until it has drained to the medium, and is
//! acknowledged once there is room for it.

use std::collections::VecDeque;

use super::spec::DeviceSpec;
use crate::units::Rate;

/// A buffer that is full at the beginning drains in so many pieces.
const FILL_PIECES: u64 = 256;

/// Random and sequential writes drain differently.
#[derive(Debug, Clone, Copy)]
struct Drain {
    rate: Rate,
    amplification_percent: u64,
}

/// What becomes of one write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffered {
    /// When there is room for all of it.
    pub(super) room_ps: u64,
    /// When it has drained.
    pub(super) drained_ps: u64,
    /// How long its own drain takes.
    pub(super) drain_ps: u64,
    /// Bytes that reach the medium, amplification included.
    pub(super) amplified_bytes: u64,
    /// Whether it continues where the last write ended.
    pub(super) sequential: bool,
}

/// The buffer.
#[derive(Debug)]
pub(super) struct WriteBuffer {
    capacity_bytes: u64,
    /// `[random, sequential]`.
    drains: [Drain; 2],
    drain_free_ps: u64,
    /// What has not drained, in order: end of the drain and bytes.
    held: VecDeque<(u64, u64)>,
    held_bytes: u64,
    /// When the last write found room; later writes do not overtake it.
    room_ps: u64,
    last_end: u64,
    last_was_sequential: bool,
}

impl WriteBuffer {
    pub(super) fn new(spec: &DeviceSpec) -> Self {
        let drain = |sequential| Drain {
            rate: Rate::new(spec.drain_bytes_per_s(sequential)),
            amplification_percent: spec.write_amplification_percent(sequential),
        };
        Self {
            capacity_bytes: spec.write.buffer_bytes,
            drains: [drain(false), drain(true)],
            drain_free_ps: 0,
            held: VecDeque::new(),
            held_bytes: 0,
            room_ps: 0,
            last_end: u64::MAX,
            last_was_sequential: false,
        }
    }

    /// Begins as after a long time of random writing: full, and draining.
    pub(super) fn fill(&mut self) {
        let piece = self.capacity_bytes / FILL_PIECES;
        for _ in 0..FILL_PIECES {
            self.drain_free_ps += self.drains[0].rate.transfer_ps(piece);
            self.held.push_back((self.drain_free_ps, piece));
            self.held_bytes += piece;
        }
    }

    /// Takes a write of `nbytes` at `offset`, of `media_bytes` in whole granules, that was received at
    /// `received_ps`. A piece that continues the request before is as sequential as that was.
    pub(super) fn take(
        &mut self,
        received_ps: u64,
        offset: u64,
        nbytes: u64,
        media_bytes: u64,
        continues: bool,
    ) -> Buffered {
        let sequential = if continues { self.last_was_sequential } else { offset == self.last_end };
        self.last_was_sequential = sequential;
        self.last_end = offset + nbytes;
        let Drain { rate, amplification_percent } = self.drains[usize::from(sequential)];
        let drain_ps = rate.transfer_ps(media_bytes);
        let begin_ps = received_ps.max(self.drain_free_ps);
        self.drain_free_ps = begin_ps + drain_ps;
        self.held.push_back((self.drain_free_ps, media_bytes));
        self.held_bytes += media_bytes;
        let mut room_ps = received_ps.max(self.room_ps);
        while let Some(&(drained_ps, bytes)) = self.held.front() {
            if self.held_bytes <= self.capacity_bytes && drained_ps > received_ps {
                break;
            }
            if self.held_bytes > self.capacity_bytes {
                if self.held.len() == 1 {
                    // A write larger than the buffer: its last bytes wait until the first have drained.
                    let over = self.held_bytes - self.capacity_bytes;
                    room_ps = room_ps.max(begin_ps + rate.transfer_ps(over));
                    break;
                }
                room_ps = room_ps.max(drained_ps);
            }
            self.held_bytes -= bytes;
            self.held.pop_front();
        }
        self.room_ps = room_ps;
        Buffered {
            room_ps,
            drained_ps: self.drain_free_ps,
            drain_ps,
            amplified_bytes: (u128::from(media_bytes) * u128::from(amplification_percent) / 100) as u64,
            sequential,
        }
    }
}
