//! The coordinator under many interleavings of threads, over a simulated ring that completes in any order,
//! short, and late. `cargo test -p tiermem-core --features shuttle --lib interleavings` runs it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Arc, Condvar, Mutex};

use super::super::{AlignedBuffer, Extent, IoBatch, Operation};
use super::{Coordinator, InFlight, Piece, Ring};
use crate::error::{Error, ErrorKind};

const DEPTH: usize = 2;
const LEN: usize = 64;

#[derive(Default)]
struct Kernel {
    file: Vec<u8>,
    pushed: Vec<(u64, Piece)>,
    submitted: Vec<(u64, Piece)>,
    completed: Vec<(u64, i32)>,
    /// A thread is inside `wait`: there must never be two.
    waiting: bool,
}

// SAFETY: pieces point into batches that the coordinator keeps; the simulation touches them under its lock.
unsafe impl Send for Kernel {}

/// Moves some bytes of a request that was submitted.
impl Kernel {
    fn work(&mut self) {
        if self.submitted.is_empty() {
            return;
        }
        let (number, piece) = self.submitted.swap_remove(thread_rng().gen_range(0..self.submitted.len()));
        if thread_rng().gen_range(0..8) == 0 {
            self.completed.push((number, -libc::EINTR));
            return;
        }
        let nbytes = thread_rng().gen_range(1..=piece.nbytes) as usize;
        let place = piece.offset as usize..piece.offset as usize + nbytes;
        // SAFETY: the coordinator promises that the memory is valid until the completion was taken.
        let memory = unsafe { std::slice::from_raw_parts_mut(piece.memory, nbytes) };
        match piece.operation {
            Operation::Read => memory.copy_from_slice(&self.file[place]),
            Operation::Write => self.file[place].copy_from_slice(memory),
        }
        self.completed.push((number, nbytes as i32));
    }
}

struct SimulatedRing {
    kernel: Arc<Mutex<Kernel>>,
    changed: Condvar,
}

impl Ring for SimulatedRing {
    fn depth(&self) -> usize {
        DEPTH
    }

    fn group(&self) -> usize {
        1
    }

    unsafe fn push(&self, number: u64, piece: Piece) {
        self.kernel.lock().unwrap().pushed.push((number, piece));
    }

    fn submit(&self) -> std::io::Result<()> {
        let mut kernel = self.kernel.lock().unwrap();
        if thread_rng().gen_range(0..6) == 0 {
            return Err(std::io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let pushed = std::mem::take(&mut kernel.pushed);
        kernel.submitted.extend(pushed);
        if thread_rng().gen_range(0..2) == 0 {
            kernel.work();
        }
        drop(kernel);
        self.changed.notify_all();
        Ok(())
    }

    fn wait(&self, _: Option<std::time::Duration>) -> std::io::Result<()> {
        let mut kernel = self.kernel.lock().unwrap();
        assert!(!std::mem::replace(&mut kernel.waiting, true), "one leader at a time");
        let pushed = std::mem::take(&mut kernel.pushed);
        kernel.submitted.extend(pushed);
        while kernel.completed.is_empty() {
            // Nothing to wait for would be a hang in the kernel, and is a deadlock here.
            if kernel.submitted.is_empty() {
                kernel = self.changed.wait(kernel).unwrap();
            } else {
                kernel.work();
            }
        }
        kernel.waiting = false;
        Ok(())
    }

    fn take(&self, completions: &mut Vec<(u64, i32)>) {
        completions.append(&mut self.kernel.lock().unwrap().completed);
    }

    fn failed(&self, _: Operation, error: std::io::Error, _: &Extent) -> Error {
        Error::new(ErrorKind::Io, error.to_string())
    }
}

fn batch(first: usize, fill: u8) -> IoBatch {
    let mut buffer = AlignedBuffer::zeroed(16);
    buffer.fill(fill);
    let extent = |n: usize| Extent { offset: (first + n * 8) as u64, buffer_offset: n * 8, nbytes: 8 };
    IoBatch { buffer, extents: (0..2).map(extent).collect() }
}

fn scenario() {
    let kernel = Arc::new(Mutex::new(Kernel { file: vec![0; LEN], ..Kernel::default() }));
    let ring = SimulatedRing { kernel: Arc::clone(&kernel), changed: Condvar::new() };
    let coordinator = std::sync::Arc::new(Coordinator::new(ring));
    let threads: Vec<_> = (0..3usize)
        .map(|thread| {
            let coordinator = std::sync::Arc::clone(&coordinator);
            shuttle::thread::spawn(move || {
                let fill = thread as u8 + 1;
                let number = coordinator.start(Operation::Write, batch(thread * 16, fill));
                let write = InFlight::on_ring(&coordinator, number);
                if thread == 2 {
                    // Nobody asks for this one.
                    drop(write);
                    return;
                }
                write.wait().1.unwrap();
                let number = coordinator.start(Operation::Read, batch(thread * 16, 0xee));
                let (read, result) = InFlight::on_ring(&coordinator, number).wait();
                result.unwrap();
                assert!(read.buffer.iter().all(|&byte| byte == fill), "a batch is whole when it comes back");
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // As the backend's `Drop`.
    coordinator.drain();
    drop(coordinator);
    let kernel = kernel.lock().unwrap();
    assert!(kernel.submitted.is_empty() && kernel.pushed.is_empty(), "the kernel refers to nothing any more");
    for (place, &byte) in kernel.file.iter().enumerate() {
        assert_eq!(usize::from(byte), if place < 48 { place / 16 + 1 } else { 0 }, "nothing is lost");
    }
}

#[test]
fn random_interleavings() {
    shuttle::check_random(scenario, 3000);
}

#[test]
fn interleavings_with_few_switches() {
    shuttle::check_pct(scenario, 3000, 3);
}
