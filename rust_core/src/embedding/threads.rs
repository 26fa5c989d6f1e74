//! Threads that share the work of one call. Work is cut so that the cut changes no bit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// More would only wait for each other.
const THREADS_MAX: usize = 1024;
/// How long a helper stays awake for the next piece of work: waking one up takes as long as pooling thousands of rows.
const AWAKE: Duration = Duration::from_micros(100);

/// The calling thread and its helpers.
#[derive(Debug)]
pub struct Threads {
    helpers: Option<rayon::ThreadPool>,
    count: usize,
    /// A fork has no helpers.
    process: u32,
    /// Counts pieces of work, so that helpers that stay awake see the next one.
    calls: Arc<AtomicU64>,
}

impl Threads {
    /// `count` threads, the calling one included.
    ///
    /// # Errors
    ///
    /// `Config` for none or too many, `Capacity` if the host does not give them.
    pub fn new(count: usize) -> Result<Self> {
        if !(1..=THREADS_MAX).contains(&count) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("a store uses between 1 and {THREADS_MAX} threads, not {count}"),
            ));
        }
        let name = |number| format!("tiermem-rows-{number}");
        let build = || rayon::ThreadPoolBuilder::new().num_threads(count - 1).thread_name(name).build();
        let helpers = if count == 1 { None } else { Some(build()) };
        let helpers = helpers.transpose().map_err(|error| {
            Error::new(ErrorKind::Capacity, format!("this host does not start {count} threads: {error}"))
        })?;
        Ok(Self { helpers, count, process: std::process::id(), calls: Arc::default() })
    }

    fn is_whole(&self) -> bool {
        std::process::id() == self.process
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Work for so many threads comes soon: helpers wake up, and stay awake for a moment.
    pub fn wake(&self, workers: usize) {
        let Some(helpers) = self.helpers.as_ref().filter(|_| workers > 1 && self.is_whole()) else { return };
        let call = self.calls.load(Ordering::Acquire);
        for _ in 1..self.count.min(workers) {
            let calls = Arc::clone(&self.calls);
            helpers.spawn(move || {
                let began = Instant::now();
                while calls.load(Ordering::Acquire) == call && began.elapsed() < AWAKE {
                    std::hint::spin_loop();
                }
            });
        }
    }

    /// Does something with every task; whoever is free takes the next one.
    pub fn each<T: Send>(&self, tasks: Vec<T>, work: impl Fn(T) + Sync) {
        let Some(helpers) = self.helpers.as_ref().filter(|_| tasks.len() > 1 && self.is_whole()) else {
            tasks.into_iter().for_each(work);
            return;
        };
        let workers = tasks.len().min(self.count);
        let tasks = Mutex::new(tasks.into_iter());
        let take = || {
            loop {
                let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(task) = task else { return };
                work(task);
            }
        };
        // Those who stayed awake look for work now.
        self.calls.fetch_add(1, Ordering::AcqRel);
        helpers.in_place_scope(|scope| {
            (1..workers).for_each(|_| scope.spawn(|_| take()));
            take();
        });
        self.wake(workers);
    }
}
